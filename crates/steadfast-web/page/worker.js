// The worker: the WebAssembly module, one request at a time, and the choice between it and WebGPU.
"use strict";

// What the module refuses, in one line.
class Refused extends Error {}
// The module stopped in the middle: it has to be made anew.
class Trapped extends Error {}

const NAME = 0;
const CONTENTS = 1;
const GOLDEN_COUNT = 16;
const GOLDEN_IMAGE = "golden/00.png";
// Bytes that pictures may leave allocated.
const SPARE = 1 << 28;

class Module {
    constructor(compiled) {
        this.exports = new WebAssembly.Instance(compiled).exports;
    }

    // Calls a function and gives its text, which is an error where it failed.
    call(name, { path, contents, index } = {}) {
        if (path !== undefined) this.#put(NAME, new TextEncoder().encode(path));
        if (contents !== undefined) this.#put(CONTENTS, contents);
        let code;
        try {
            code = this.exports[name](index);
        } catch (error) {
            throw new Trapped(`the program stopped (${this.#text() || error.message})`);
        }
        if (code !== 0) throw new Refused(this.#text());
        return this.#text();
    }

    floats() {
        const [start, count] = [this.exports.floats() >>> 0, this.exports.floats_len() >>> 0];
        return new Float32Array(this.exports.memory.buffer, start, count).slice();
    }

    #put(which, bytes) {
        const start = this.exports.buffer(which, bytes.length) >>> 0;
        if (start === 0) throw new Refused("not enough memory for this file");
        new Uint8Array(this.exports.memory.buffer, start, bytes.length).set(bytes);
    }

    #text() {
        const [start, length] = [this.exports.text() >>> 0, this.exports.text_len() >>> 0];
        return new TextDecoder().decode(new Uint8Array(this.exports.memory.buffer, start, length));
    }
}

let compiled = null;
let shaders = null;
let alwaysGpu = false;
let module = null;
// Bytes of memory that it has for the bundle alone.
let needed = 0;
// The files of the bundle that is open, to open it again.
let files = [];
// WebGPU, where it computes this bundle faster.
let gpu = null;
// Whether the module was asked for the plan of WebGPU.
let planned = false;
// Counts the bundles: a trial of WebGPU that another bundle has overtaken ends.
let generation = 0;

const handlers = {
    async start({ wasm, always, ...texts }) {
        const letters = atob(wasm);
        const packed = new Uint8Array(letters.length);
        for (let i = 0; i < packed.length; i++) packed[i] = letters.charCodeAt(i);
        const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
        compiled = await WebAssembly.compile(await new Response(stream).arrayBuffer());
        [shaders, alwaysGpu] = [texts, always];
    },

    async open({ files: chosen }) {
        generation += 1;
        [gpu, planned] = [null, false];
        try {
            const begin = performance.now();
            files = await Promise.all(chosen.map(async ({ name, file }) => ({ path: name, contents: await bytes(file) })));
            const bundle = reopen();
            postMessage({ kind: "opened", bundle: { ...bundle, milliseconds: performance.now() - begin } });
        } catch (error) {
            postMessage({ kind: "refused", error: error.message });
            return;
        }
        postMessage({ kind: "engine", text: "WASM answers." });
        tryGpu(generation);
    },

    async inspect({ id, name, file }) {
        let [answer, engine] = [{ path: name }, "WASM"];
        let begin = performance.now();
        try {
            const contents = await bytes(file);
            begin = performance.now();
            const text = gpu && await byGpu(gpu, name, contents);
            if (text) engine = "WebGPU";
            answer = JSON.parse(text || module.call("inspect", { path: name, contents }));
        } catch (error) {
            answer.error = error.message;
            if (error instanceof Trapped) {
                reopen();
                answer.error += "; it was started again, and its self-test passed";
            }
        }
        postMessage({ kind: "answer", id, answer, engine, milliseconds: performance.now() - begin });
        // Memory of WebAssembly grows with a large picture and never shrinks.
        if (module.exports.memory.buffer.byteLength > needed + SPARE) reopen();
    },
};

async function bytes(file) {
    try {
        return new Uint8Array(await file.arrayBuffer());
    } catch (error) {
        throw new Refused(`${file.name}: it cannot be read (${error.message}); choose it again`);
    }
}

// A new module with the bundle, whose self-test has passed.
function reopen() {
    module = new Module(compiled);
    files.forEach((file) => module.call("put_file", file));
    const bundle = JSON.parse(module.call("open"));
    if (planned) module.call("gpu_plan");
    needed = module.exports.memory.buffer.byteLength;
    return bundle;
}

// The answer by WebGPU; nothing where WebAssembly has to answer.
async function byGpu(engine, path, contents) {
    try {
        module.call("gpu_input", { contents });
        return module.call("gpu_answer", { path, contents: await engine.run(module.floats()) });
    } catch (error) {
        if (error instanceof Trapped) throw error;
        // What cannot be read is told by `inspect`; a device that was lost stays so.
        if (!(error instanceof Refused)) {
            gpu = null;
            postMessage({ kind: "engine", text: `WASM answers; WebGPU failed: ${error.message}` });
        }
        return null;
    }
}

// Compares WebGPU with the golden logits, measures it, and keeps it if it is the faster one. Pictures are answered meanwhile.
async function tryGpu(mine) {
    let [text, engine] = ["", null];
    try {
        const plan = JSON.parse(module.call("gpu_plan"));
        planned = true;
        engine = await Gpu.open(shaders, plan, module.floats());
        const features = [];
        for (let index = 0; index < GOLDEN_COUNT; index++) {
            if (mine !== generation) return engine.close();
            module.call("gpu_golden", { index });
            features.push(await engine.run(module.floats()));
        }
        if (mine !== generation) return engine.close();
        const difference = Number(module.call("gpu_check", { contents: joined(features) }));
        const [path, contents] = [GOLDEN_IMAGE, files.find((file) => file.path === GOLDEN_IMAGE).contents];
        const wasmTime = await fastest(() => module.call("inspect", { path, contents }));
        const gpuTime = await fastest(async () => {
            module.call("gpu_input", { contents });
            module.call("gpu_answer", { path, contents: await engine.run(module.floats()) });
        });
        if (mine !== generation) return engine.close();
        if (alwaysGpu || gpuTime < wasmTime) gpu = engine;
        else engine.close();
        text = `${gpu ? "WebGPU" : "WASM"} answers${alwaysGpu ? "" : " because it is faster"}: WASM ${wasmTime.toFixed(1)} ms, `
            + `WebGPU ${gpuTime.toFixed(1)} ms a picture (${engine.name}; largest difference of a golden logit `
            + `${difference.toExponential(1)}).`;
    } catch (error) {
        text = `WASM answers; WebGPU does not: ${error.message}.`;
        engine?.close();
        if (error instanceof Trapped) reopen();
    }
    if (mine === generation) postMessage({ kind: "engine", text });
}

function joined(parts) {
    const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((start, part) => (all.set(part, start), start + part.length), 0);
    return all;
}

// Milliseconds of the fastest of some runs.
async function fastest(run) {
    let best = Infinity;
    for (let i = 0; i < 5; i++) {
        const begin = performance.now();
        await run();
        best = Math.min(best, performance.now() - begin);
    }
    return best;
}

let queue = Promise.resolve();
onmessage = ({ data }) => {
    queue = queue.then(() => handlers[data.kind](data)).catch((error) => {
        postMessage({ kind: "refused", error: `${error.message}; load the page again` });
    });
};
