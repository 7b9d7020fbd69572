// The page: takes files, hands them to the worker, and shows what it answers.
"use strict";

const byId = (id) => document.getElementById(id);
const rows = byId("parts").tBodies[0];
// Pictures by their number: { name, file, row, answer }.
const parts = new Map();
let next = 0;
let bundle = null;

function element(tag, text = "", className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    return made;
}

function showTest(state, title, text) {
    byId("test").className = `state ${state}`;
    byId("test").replaceChildren(element("b", title), text);
}

const worker = startWorker();

function startWorker() {
    // A worker of this text is bound by the policy of this page; one from a file of its own would have its own.
    const address = URL.createObjectURL(new Blob([byId("worker").text], { type: "text/javascript" }));
    const worker = new Worker(address);
    worker.onmessage = ({ data }) => handlers[data.kind](data);
    worker.onerror = (event) => showTest("bad", "This page cannot work here", event.message || "Its worker did not start.");
    const [wasm, convolve, affine, max_pool] = ["wasm", "convolve", "affine", "max_pool"].map((id) => byId(id).text);
    // With #webgpu, WebGPU answers also where it is slower.
    worker.postMessage({ kind: "start", wasm, convolve, affine, max_pool, always: location.hash === "#webgpu" });
    return worker;
}

const handlers = {
    opened({ bundle: opened }) {
        bundle = opened;
        const { arch, labels, good, width, height, channels, margin, difference, milliseconds } = opened;
        const rule = good.length === 0 ? "no class is named good, so there is no verdict" : margin === null
            ? `passes when the label is ${good.join(" or ")}`
            : `passes when the margin of ${good.join(" or ")} is at least ${margin}`;
        showTest("good", "Passed: the bundle answers as it did where it was exported",
            `${arch}, ${width} × ${height} ${channels === 1 ? "grey" : "colour"}, classes ${labels.join(", ")}; ${rule}. `
            + `Checksums right; largest difference of a golden logit ${difference.toExponential(1)} (allowed 1e-3); `
            + `${milliseconds.toFixed(0)} ms.`);
        parts.forEach((_, id) => inspect(id));
    },
    refused({ error }) {
        bundle = null;
        byId("engine").textContent = "";
        showTest("bad", "Failed: nothing is inspected with this bundle", error);
        count();
    },
    engine({ text }) {
        byId("engine").textContent = text;
    },
    answer({ id, answer, engine, milliseconds }) {
        const part = parts.get(id);
        if (part === undefined || bundle === null) return;
        part.answer = answer;
        show(part.row, { ...answer, engine, milliseconds });
        if (performance.getEntriesByName("first verdict").length === 0) performance.mark("first verdict");
        count();
    },
};

const reasons = {
    "margin": "neither surely good nor surely defective",
    "out-of-distribution": "unlike every part of the training",
};

function show(row, { label, confidence, verdict, reason, error, engine, milliseconds }) {
    const wide = (cell) => Object.assign(cell, { colSpan: 2 });
    const share = element("td", `${(100 * confidence).toFixed(0)} %`, "number");
    const cells = error !== undefined ? [element("td", "ERROR", "verdict error"), wide(element("td", error))]
        : verdict === undefined ? [wide(element("td", label, "verdict")), share]
            : [element("td", verdict.toUpperCase(), `verdict ${verdict}`), element("td", reason ? `${label}, ${reasons[reason]}` : label), share];
    const time = element("td", milliseconds.toFixed(1), "number");
    time.title = `computed by ${engine}`;
    row.replaceChildren(...[...row.cells].slice(0, 2), ...cells, time);
}

function waiting(row) {
    row.replaceChildren(...[...row.cells].slice(0, 2), element("td", "…"), element("td"), element("td"), element("td"));
}

function inspect(id) {
    const part = parts.get(id);
    part.answer = undefined;
    waiting(part.row);
    if (bundle !== null) worker.postMessage({ kind: "inspect", id, name: part.name, file: part.file });
}

function add({ name, file }) {
    const row = element("tr");
    const picture = element("img");
    picture.alt = "";
    picture.loading = "lazy";
    picture.src = URL.createObjectURL(file);
    // Not every browser shows every format that is read here.
    picture.onerror = () => picture.remove();
    row.append(element("td"), element("td", name));
    row.cells[0].append(picture);
    rows.append(row);
    parts.set(next, { name, file, row });
    inspect(next);
    next += 1;
}

function count() {
    const kinds = new Map();
    for (const { answer } of parts.values()) {
        const kind = answer === undefined ? "waiting" : answer.error !== undefined ? "unreadable"
            : answer.verdict ? answer.verdict.toUpperCase() : answer.label;
        kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
    }
    const each = [...kinds].sort().map(([kind, number]) => `${kind}: ${number}`).join(", ");
    const pictures = parts.size === 1 ? "1 picture" : `${parts.size} pictures`;
    byId("counts").textContent = parts.size === 0 ? "No pictures yet."
        : `${pictures}. ${each}${bundle === null ? " (no bundle is open)" : ""}`;
    byId("parts").hidden = byId("clear").hidden = parts.size === 0;
}

// Takes files with their paths: those of a bundle, which has a manifest.json, and pictures.
async function take(files) {
    const visible = files.filter(({ name }) => !name.split("/").some((part) => part.startsWith(".")));
    const manifest = visible.map(({ name }) => name).filter((name) => /(^|\/)manifest\.json$/.test(name))
        .sort((one, two) => one.length - two.length)[0];
    const pictures = manifest === undefined ? visible : await takeBundle(visible, manifest.slice(0, -"manifest.json".length));
    pictures.sort((one, two) => (one.name < two.name ? -1 : 1)).forEach(add);
    count();
}

// Opens the bundle of a folder; what is left over.
async function takeBundle(files, folder) {
    const inside = new Map();
    for (const { name, file } of files.filter(({ name }) => name.startsWith(folder))) {
        // Files chosen one by one come without their folder.
        inside.set(name.slice(folder.length).replace(/^(\d\d\.png)$/, "golden/$1"), { name, file });
    }
    const list = await inside.get("SHA256SUMS")?.file.text().catch(() => undefined);
    const listed = list?.split("\n").map((line) => line.split("  ")[1]).concat("SHA256SUMS", "manifest.json");
    // Without a list that can be used, the self-test says so, and everything there is taken for a part of the bundle.
    const members = [...inside].filter(([name]) => !listed?.includes("model.safetensors") || listed.includes(name));
    bundle = null;
    byId("engine").textContent = "";
    // Answers of the bundle before.
    parts.forEach((part) => {
        part.answer = undefined;
        waiting(part.row);
    });
    showTest("", "Running", "Checksums, preprocessing and golden logits are compared.");
    worker.postMessage({ kind: "open", files: members.map(([name, { file }]) => ({ name, file })) });
    const taken = new Set(members.map(([, { name }]) => name));
    return files.filter(({ name }) => !taken.has(name));
}

// The files of what was dropped, with their paths.
async function walk(entry, dropped) {
    if (entry.isFile) {
        const file = dropped ?? await new Promise((done, failed) => entry.file(done, failed));
        return [{ name: entry.fullPath.slice(1), file }];
    }
    const reader = entry.createReader();
    const found = [];
    // It gives its entries in parts, the last of which is empty.
    for (let some = [null]; some.length > 0;) {
        some = await new Promise((done, failed) => reader.readEntries(done, failed));
        for (const inner of some) found.push(...await walk(inner));
    }
    return found;
}

// Browsers do not let a page that was opened from a disk read dropped folders.
function failed(error) {
    byId("counts").textContent = `What was dropped could not be read (${error.message ?? error}); use "Choose a folder".`;
}

for (const id of ["folder", "files"]) {
    byId(id).addEventListener("change", ({ target }) => {
        take([...target.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }))).catch(failed);
        // So that the same files can be chosen again.
        target.value = "";
    });
}
document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    // Entries are there only as long as the event.
    Promise.all(items.map((item) => walk(item.webkitGetAsEntry(), item.getAsFile()))).then((found) => take(found.flat())).catch(failed);
});
byId("clear").addEventListener("click", () => {
    rows.querySelectorAll("img").forEach((picture) => URL.revokeObjectURL(picture.src));
    rows.replaceChildren();
    parts.clear();
    count();
});
