// Compiles shaders by Tint, the WGSL compiler of Chromium, on its software adapter: what naga accepts, another compiler must, too.
//     NODE_PATH=...node_modules node tests/golden/tint.mjs SHADERS.json        (an object: texts of WGSL by their names)
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const shaders = JSON.parse(readFileSync(process.argv[2], "utf8"));
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const args = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const browser = await chromium.launch({ executablePath, args });
// WebGPU is there for pages of this machine's own address.
const server = createServer((_, response) => response.setHeader("Content-Type", "text/html").end());
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${server.address().port}/`);

const refused = await page.evaluate(async (shaders) => {
    const adapter = await navigator.gpu.requestAdapter();
    const device = await adapter.requestDevice();
    const refused = [];
    for (const [name, code] of Object.entries(shaders)) {
        device.pushErrorScope("validation");
        const module = device.createShaderModule({ code });
        try {
            await device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main" } });
        } catch (error) {
            const { messages } = await module.getCompilationInfo();
            const lines = messages.map(({ lineNum, message }) => `line ${lineNum}: ${message}`);
            refused.push(`${name}: ${[error.message, ...lines].join("; ")}`);
        }
        const error = await device.popErrorScope();
        if (error && !refused.some((line) => line.startsWith(`${name}: `))) refused.push(`${name}: ${error.message}`);
    }
    return refused;
}, shaders);
server.close();
await browser.close();
console.log(`${Object.keys(shaders).length - refused.length} of ${Object.keys(shaders).length} shaders compile`);
refused.forEach((line) => console.log(line));
process.exitCode = refused.length === 0 ? 0 : 1;
