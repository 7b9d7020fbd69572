// The page in headless Chromium, with WebGPU on its software adapter and without: answers, self-test, hostile files, policy,
// time to the first verdict. `scripts/web --test` runs it. SCREENSHOTS names a folder for pictures of the page.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { crc32, deflateSync } from "node:zlib";

const { chromium } = createRequire(import.meta.url)("playwright-core");

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
const page_file = resolve(process.argv[2], "index.html");
const reference = join(root, "exports/reference");
const steadfast = process.env.STEADFAST;
const browser_path = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
    .find((path) => path && existsSync(path));
if (browser_path === undefined) {
    console.log("not tested: no Chromium; install it (Debian: apt-get install chromium) or name it in CHROMIUM");
    process.exit(0);
}
const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const TOLERANCE = 1e-3;
const folder = mkdtempSync(join(tmpdir(), "steadfast-web-"));
const pictureFolder = join(folder, "pictures");
mkdirSync(pictureFolder);
process.on("exit", () => rmSync(folder, { recursive: true }));

// A PNG of 8 or 16 bits whose values `value(x, y, channel)` gives in [0, 1].
function png(width, height, channels, bits, value) {
    const chunk = (name, data) => {
        const body = Buffer.concat([Buffer.from(name), data]);
        const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
        length.writeUInt32BE(data.length);
        sum.writeUInt32BE(crc32(body));
        return Buffer.concat([length, body, sum]);
    };
    const header = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, bits, channels === 1 ? 0 : 2, 0, 0, 0]);
    header.writeUInt32BE(width, 0);
    header.writeUInt32BE(height, 4);
    const bytes = [];
    for (let y = 0; y < height; y++) {
        bytes.push(0);
        for (let i = 0; i < width * channels; i++) {
            const level = Math.round(value(Math.floor(i / channels), y, i % channels) * (2 ** bits - 1));
            bytes.push(...bits === 16 ? [level >> 8, level & 255] : [level]);
        }
    }
    return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), chunk("IHDR", header),
        chunk("IDAT", deflateSync(Buffer.from(bytes))), chunk("IEND", Buffer.alloc(0))]);
}

// A JPEG with an EXIF orientation.
function turned(jpeg, orientation) {
    const tiff = [0x4d, 0x4d, 0, 42, 0, 0, 0, 8, 0, 1, 1, 18, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0];
    const exif = [0x45, 0x78, 0x69, 0x66, 0, 0, ...tiff];
    return Buffer.concat([jpeg.subarray(0, 2), Buffer.from([0xff, 0xe1, 0, exif.length + 2, ...exif]), jpeg.subarray(2)]);
}

// Golden logits by the name of their picture.
function goldenLogits() {
    const bytes = readFileSync(join(reference, "golden.safetensors"));
    const header = 8 + Number(bytes.readBigUInt64LE(0));
    const { logits } = JSON.parse(bytes.subarray(8, header));
    const [count, classes] = logits.shape;
    const value = (i) => bytes.readFloatLE(header + logits.data_offsets[0] + 4 * i);
    return new Map(Array.from({ length: count }, (_, index) => [`${String(index).padStart(2, "0")}.png`,
        { logits: Array.from({ length: classes }, (_, c) => value(index * classes + c)) }]));
}

// Writes pictures of every kind into the folder.
async function writePictures(browser) {
    const page = await browser.newPage();
    const jpeg = Buffer.from(await page.evaluate(async () => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [90, 60];
        const context = canvas.getContext("2d");
        for (let i = 0; i < 90; i++) {
            context.fillStyle = `rgb(${2 * i}, ${200 - i}, ${i * 37 % 256})`;
            context.fillRect(i, i % 40, 3, 60 - i % 50);
        }
        const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
        return [...new Uint8Array(await blob.arrayBuffer())];
    }));
    await page.close();
    const value = (x, y, c) => (Math.sin(x / (5 + c)) * Math.cos(y / 7) + 1) / 2;
    const scratch = (x, y) => (Math.abs(x - y) < 2 ? 0.95 : 0.4 + 0.1 * Math.sin(x * y));
    const pictures = {
        "grey.png": png(64, 48, 1, 8, scratch), "colour.png": png(50, 70, 3, 8, value), "grey16.png": png(40, 40, 1, 16, scratch),
        "colour16.png": png(33, 31, 3, 16, value), "photo.jpg": jpeg, "turned.jpg": turned(jpeg, 6),
        "mirrored.jpg": turned(jpeg, 2), "cut.jpg": jpeg.subarray(0, jpeg.length - 300), "text.png": Buffer.from("no picture\n"),
        "empty.png": Buffer.alloc(0),
    };
    for (const [name, bytes] of Object.entries(pictures)) writeFileSync(join(pictureFolder, name), bytes);
    for (const kind of ["png", "jpeg", "bmp", "tiff", "webp"]) {
        const corpus = join(root, "fuzz/corpus", kind);
        for (const name of readdirSync(corpus)) {
            const bytes = readFileSync(join(corpus, name));
            writeFileSync(join(pictureFolder, `corpus-${kind}-${name}`), bytes);
            writeFileSync(join(pictureFolder, `corpus-${kind}-${name}-cut`), bytes.subarray(0, bytes.length * 2 / 3));
        }
    }
    return readdirSync(pictureFolder).map((name) => join(pictureFolder, name));
}

// What the program says of pictures, by name.
function expected(pictures) {
    if (steadfast === undefined) return new Map();
    const run = ["inspect", reference, ...pictures, "--json", "--logits", "--device", "cpu"];
    let text;
    try {
        text = execFileSync(steadfast, run, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    } catch (error) {
        // Unreadable pictures end in an exit code of their own.
        text = error.stdout;
    }
    return new Map(text.trim().split("\n").map((line) => JSON.parse(line)).map((answer) => [answer.path.split("/").at(-1), answer]));
}

const bundleFiles = () => ["manifest.json", "SHA256SUMS", "MODEL_CARD.md", "model.safetensors", "golden.safetensors",
    ...readdirSync(join(reference, "golden")).map((name) => `golden/${name}`)].map((name) => join(reference, name));
// A copy of the bundle that `change` has changed.
function changed(change) {
    const copy = mkdtempSync(join(folder, "bundle-"));
    const files = new Map(bundleFiles().map((path) => [path.slice(reference.length + 1), readFileSync(path)]));
    change(files);
    mkdirSync(join(copy, "golden"));
    for (const [name, bytes] of files) writeFileSync(join(copy, name), bytes);
    return copy;
}

const answers = (page) => page.evaluate(() => [...parts.values()].map(({ name, answer }) => ({ name, answer })));
const settled = (page) => page.waitForFunction(() => parts.size > 0 && [...parts.values()].every(({ answer }) => answer !== undefined));
const selfTest = (page, state) => page.waitForSelector(`#test.${state}`);
const engineSettled = (page) => page.waitForFunction(() => document.getElementById("engine").textContent.length > 20, null, { timeout: 120000 });

// A new page, which is given files as soon as it is there.
async function fresh(context, address, given = []) {
    const page = await context.newPage();
    const name = (path) => (path.startsWith(reference) ? relative(reference, path) : basename(path));
    const files = given.map((path) => [name(path), readFileSync(path, "base64")]);
    await page.addInitScript((files) => document.addEventListener("DOMContentLoaded", () => {
        const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        if (files.length > 0) take(files.map(([name, text]) => ({ name, file: new File([bytes(text)], name) })));
    }), files);
    page.errors = [];
    page.requests = [];
    page.on("pageerror", (error) => page.errors.push(String(error)));
    page.on("console", (message) => message.type() === "error" && page.errors.push(message.text()));
    page.on("request", (request) => /^(blob|data):/.test(request.url()) || page.requests.push(request.url()));
    await page.goto(address);
    return page;
}

// Compares answers with what is expected; the largest difference of a logit.
function compare(found, wanted) {
    let largest = 0;
    for (const { name, answer } of found) {
        const other = wanted.get(name.split("/").at(-1));
        if (other === undefined) continue;
        assert.equal(answer.error === undefined, other.error === undefined, `${name}: ${JSON.stringify([answer, other])}`);
        if (other.label !== undefined) {
            assert.equal(answer.label, other.label, name);
            assert.equal(answer.verdict, other.verdict, name);
            assert.ok(Math.abs(answer.confidence - other.confidence) < TOLERANCE, name);
        }
        for (const [i, logit] of (other.logits ?? []).entries()) {
            const difference = Math.abs(answer.logits[i] - logit);
            assert.ok(difference <= TOLERANCE, `${name}: logit ${answer.logits[i]}, not ${logit}`);
            largest = Math.max(largest, difference);
        }
    }
    return largest;
}

async function everything(name, args, address) {
    const browser = await chromium.launch({ executablePath: browser_path, args: ["--no-sandbox", ...args] });
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
    const pictures = await writePictures(context);
    const golden = goldenLogits();
    const goldenPictures = readdirSync(join(reference, "golden")).map((file) => join(reference, "golden", file));

    // The first verdict, from the beginning of loading: bundle and picture are given as soon as the page is there. The fastest of
    // three, for other programs run here too.
    let page;
    let first = Infinity;
    for (let i = 0; i < 3; i++) {
        await page?.close();
        page = await fresh(context, address, [...bundleFiles(), join(pictureFolder, "photo.jpg")]);
        await page.waitForFunction(() => performance.getEntriesByName("first verdict").length === 1);
        first = Math.min(first, await page.evaluate(() => performance.getEntriesByName("first verdict")[0].startTime));
    }
    assert.ok(first < 1000, `the first verdict took ${first} ms`);

    // All pictures.
    await selfTest(page, "good");
    await page.click("#clear");
    await page.setInputFiles("#files", [...goldenPictures, ...pictures]);
    await settled(page);
    const found = await answers(page);
    assert.equal(found.length, goldenPictures.length + pictures.length);
    const wasm = Math.max(compare(found, golden), compare(found, expected([...goldenPictures, ...pictures])));
    for (const part of ["text.png", "empty.png", "cut.jpg"]) assert.ok(found.find(({ name }) => name === part).answer.error, part);
    assert.notDeepEqual(found.find(({ name }) => name === "photo.jpg").answer.logits, found.find(({ name }) => name === "turned.jpg").answer.logits);
    const counts = await page.textContent("#counts");
    assert.match(counts, new RegExp(`^${found.length} pictures\\. PASS: \\d+, REJECT: \\d+, unreadable: \\d+$`));
    await engineSettled(page);
    const engine = await page.textContent("#engine");
    assert.match(engine, args.length === 0 ? /this browser offers none/ : /largest difference of a golden logit/);

    assert.deepEqual(page.errors, []);
    assert.deepEqual(page.requests, [address], "something else was loaded");
    await page.close();

    // By WebGPU, also where it is slower.
    let webgpu = "";
    if (args.length > 0) {
        page = await fresh(context, `${address}#webgpu`, bundleFiles());
        await engineSettled(page);
        await page.setInputFiles("#files", [...goldenPictures, ...pictures]);
        await settled(page);
        const again = await answers(page);
        const computed = await page.$$eval("#parts td:last-child", (cells) => cells.filter(({ title }) => title.endsWith("WebGPU")).length);
        assert.equal(computed, again.filter(({ answer }) => answer.error === undefined).length);
        const difference = Math.max(compare(again, golden), compare(again, new Map(found.map(({ name: file, answer }) => [file, answer]))));
        webgpu = `, by WebGPU ${difference.toExponential(1)}`;
        assert.deepEqual(page.errors, []);
        await page.close();
    }

    // Broken bundles: refused, with the reason, and nothing is inspected.
    page = await fresh(context, address);
    await page.setInputFiles("#files", goldenPictures[1]);
    const flip = (file) => (files) => { files.get(file)[files.get(file).length >> 1] ^= 1; };
    const broken = [[flip("model.safetensors"), /model.safetensors: its checksum is wrong/], [flip("golden/07.png"), /golden\/07.png: its checksum/],
        [(files) => files.delete("golden.safetensors"), /golden.safetensors: not among the files/],
        [(files) => files.delete("SHA256SUMS"), /SHA256SUMS: not among the files/],
        [(files) => files.set("manifest.json", Buffer.from("{")), /manifest.json: /],
        [(files) => files.set("SHA256SUMS", Buffer.from("x")), /SHA256SUMS: not a list/]];
    for (const [change, reason] of broken) {
        await page.setInputFiles("#folder", changed(change));
        await page.waitForFunction((reason) => new RegExp(reason).test(document.getElementById("test").textContent), reason.source);
        assert.equal(await page.getAttribute("#test", "class"), "state bad");
        assert.ok((await answers(page)).every(({ answer }) => answer === undefined));
    }
    // A right one afterwards, its files chosen one by one.
    await page.setInputFiles("#files", bundleFiles());
    await selfTest(page, "good");
    await settled(page);
    compare(await answers(page), golden);

    // Another that is broken takes the answers away. It is dropped as a folder, beside a picture.
    const data = { items: [], files: [changed(flip("model.safetensors")), goldenPictures[2]], dragOperationsMask: 1 };
    const session = await context.newCDPSession(page);
    for (const type of ["dragEnter", "dragOver", "drop"]) await session.send("Input.dispatchDragEvent", { type, x: 200, y: 200, data });
    if (address.startsWith("file:")) {
        await page.waitForFunction(() => document.getElementById("counts").textContent.includes('use "Choose a folder"'));
    } else {
        await selfTest(page, "bad");
        await page.waitForFunction(() => parts.size === 2);
        assert.ok((await answers(page)).every(({ answer }) => answer === undefined));
        assert.match(await page.textContent("#counts"), /^2 pictures. waiting: 2 \(no bundle is open\)$/);
    }

    // The policy: no connection, also none of the worker.
    const blocked = await page.evaluate(async () => {
        const inner = new Worker(URL.createObjectURL(new Blob(["fetch('http://localhost:1/').then(() => postMessage('sent'), (e) => postMessage('blocked'))"])));
        const ofWorker = await new Promise((done) => { inner.onmessage = ({ data }) => done(data); });
        return [ofWorker, await fetch(location.href).then(() => "sent", () => "blocked")];
    });
    assert.deepEqual(blocked, ["blocked", "blocked"]);
    await page.close();

    if (process.env.SCREENSHOTS) await screenshots(context, address, name, [...goldenPictures.slice(0, 5), ...pictures.filter((path) => !path.includes("corpus"))]);
    await browser.close();
    console.log(`${name}: first verdict ${first.toFixed(0)} ms; ${counts}; largest difference of a logit ${wasm.toExponential(1)}${webgpu}; ${engine}`);
}

async function screenshots(context, address, name, pictures) {
    for (const [size, width] of [["desktop", 1280], ["phone", 390]]) {
        for (const scheme of ["light", "dark"]) {
            const page = await fresh(context, address);
            await page.setViewportSize({ width, height: 900 });
            await page.emulateMedia({ colorScheme: scheme });
            await page.setInputFiles("#folder", reference);
            await page.setInputFiles("#files", pictures);
            await settled(page);
            await engineSettled(page);
            assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width, `${size}: the page is wider than the screen`);
            await page.screenshot({ path: join(process.env.SCREENSHOTS, `web-${name}-${size}-${scheme}.png`), fullPage: true });
            await page.close();
        }
    }
}

// A page whose module stops in the middle of a picture, and starts again.
async function trapped(address) {
    const browser = await chromium.launch({ executablePath: browser_path, args: ["--no-sandbox"] });
    const page = await fresh(await browser.newContext(), address, [...bundleFiles(), join(pictureFolder, "photo.jpg"), join(pictureFolder, "grey.png")]);
    await settled(page);
    const [grey, photo] = (await answers(page)).map(({ answer }) => answer);
    assert.match(photo.error, /^the program stopped \(unreachable\); it was started again, and its self-test passed$/);
    assert.ok(grey.label);
    await page.setInputFiles("#files", join(pictureFolder, "colour.png"));
    await settled(page);
    assert.ok((await answers(page))[2].answer.label);
    await browser.close();
    console.log("trap: told, and inspection went on");
}

const server = createServer((request, response) => {
    const html = readFileSync(page_file, "utf8");
    const stop = 'if (path === "photo.jpg" && this.exports.put_file() === 0) throw new WebAssembly.RuntimeError("unreachable");\n';
    const call = "code = this.exports[name](index);";
    assert.ok(html.includes(call));
    response.setHeader("Content-Type", "text/html").end(request.url === "/trap" ? html.replace(call, stop + call) : html);
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const address = `http://127.0.0.1:${server.address().port}/`;
try {
    await everything("wasm", [], address);
    await everything("file", [], pathToFileURL(page_file).href);
    await everything("webgpu", WEBGPU, address);
    await trapped(`${address}trap`);
} finally {
    server.close();
}
