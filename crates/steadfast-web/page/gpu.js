// A network on WebGPU by the shaders of the project, as `gpu_plan` lays it out.
"use strict";

const WORKGROUP = 64;
// Workgroups that every device allows in one dimension.
const MAX_WORKGROUPS = 65535;
const FOUR = 4;
const product = (shape) => shape.reduce((one, two) => one * two);

class Gpu {
    #device;
    #shaders;
    #pipelines = new Map();
    #constants;
    #launches = [];
    #input;
    #result;
    #readable;
    #failure = null;
    name;

    static async open(shaders, plan, constants) {
        const adapter = await navigator.gpu?.requestAdapter();
        if (!adapter) throw new Error("this browser offers none");
        const gpu = new Gpu();
        const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
        gpu.#device = await adapter.requestDevice({ requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } });
        gpu.name = adapter.info.description || `${adapter.info.vendor} ${adapter.info.architecture}`.trim() || "unnamed";
        gpu.#shaders = shaders;
        gpu.#device.lost.then(({ message }) => { gpu.#failure ??= message || "the device was lost"; });
        gpu.#device.onuncapturederror = ({ error }) => { gpu.#failure ??= error.message; };
        await gpu.#prepare(plan, constants);
        return gpu;
    }

    // Features, as bytes, of an input that is laid out as the plan has it.
    async run(input) {
        const device = this.#device;
        device.queue.writeBuffer(this.#input, 0, input);
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        for (const { pipeline, group, workgroups } of this.#launches) {
            pass.setPipeline(pipeline);
            pass.setBindGroup(0, group);
            const across = Math.min(workgroups, MAX_WORKGROUPS);
            pass.dispatchWorkgroups(across, Math.ceil(workgroups / across));
        }
        pass.end();
        encoder.copyBufferToBuffer(this.#result, 0, this.#readable, 0, this.#readable.size);
        device.queue.submit([encoder.finish()]);
        await this.#readable.mapAsync(GPUMapMode.READ);
        const features = new Uint8Array(this.#readable.getMappedRange().slice(0));
        this.#readable.unmap();
        if (this.#failure !== null) throw new Error(this.#failure);
        return features;
    }

    close() {
        this.#device.destroy();
    }

    async #prepare(plan, constants) {
        const floats = (count, usage = 0) => this.#buffer(4 * count, GPUBufferUsage.STORAGE | usage);
        this.#constants = floats(constants.length, GPUBufferUsage.COPY_DST);
        this.#device.queue.writeBuffer(this.#constants, 0, constants);
        const most = Math.max(...plan.layers.map(({ shape }) => product(shape)));
        // Of a convolution, and what stands for a residual that is not there.
        const [sums, nothing] = [floats(most), floats(FOUR)];
        const values = [plan, ...plan.layers].map((layer) => {
            const shape = layer.shape ?? layer.input;
            return { shape, buffer: floats(product(shape), GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST) };
        });
        for (const [index, layer] of plan.layers.entries()) {
            const [from, to] = [values[layer.input], values[index + 1]];
            if (layer.conv) await this.#convolve(layer, from, sums);
            if (layer.pool) {
                await this.#pool(from, to);
                continue;
            }
            const [count, channels] = [product(to.shape), to.shape[2]];
            const residual = layer.residual === null ? nothing : values[layer.residual].buffer;
            const scalars = { VALUES: count, CHANNELS: channels, RESIDUAL: Number(layer.residual !== null), RELU: Number(layer.relu) };
            await this.#launch("affine", {}, scalars, count, [layer.conv ? sums : from.buffer, residual,
                this.#part(layer.scale, channels), this.#part(layer.shift, channels), to.buffer]);
        }
        const last = values.at(-1);
        [this.#input, this.#result] = [values[0].buffer, last.buffer];
        this.#readable = this.#buffer(4 * product(last.shape), GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
    }

    async #convolve({ conv, shape: [rows, columns, outputs] }, { shape: [height, width, inputs], buffer }, sums) {
        const { kernel, stride, padding, weights } = conv;
        // Columns and fours of channels that an invocation computes: fours of channels have to divide those of the output.
        const [across, fours] = [4, outputs / FOUR % 2 === 0 ? 2 : 1];
        const constants = { COLUMNS: across, VECTORS: fours, STRIDE: stride, TAPS: kernel };
        await this.#launch("convolve", constants, {
            BATCH: 1, INPUT_ROWS: height, INPUT_COLUMNS: width, INPUT_FOURS: inputs / FOUR, OUTPUT_ROWS: rows,
            OUTPUT_COLUMNS: columns, OUTPUT_FOURS: outputs / FOUR, PADDING: padding,
        }, rows * Math.ceil(columns / across) * (outputs / FOUR / fours),
        [buffer, this.#part(weights, kernel * kernel * inputs * outputs), sums]);
    }

    async #pool({ shape: [height, width, channels], buffer }, to) {
        const count = product(to.shape);
        const scalars = { VALUES: count, INPUT_ROWS: height, INPUT_COLUMNS: width, COLUMNS: to.shape[1], CHANNELS: channels };
        await this.#launch("max_pool", {}, scalars, count, [buffer, to.buffer]);
    }

    // Prepares a launch: constants that the text of a shader declares get other values, and scalars their places in `info`.
    async #launch(name, constants, scalars, invocations, buffers) {
        let text = this.#shaders[name];
        for (const [constant, value] of Object.entries({ WORKGROUP, ...constants })) {
            text = text.replace(new RegExp(`^const ${constant}: u32 = \\d+u;`, "m"), `const ${constant}: u32 = ${value}u;`);
        }
        const pipeline = this.#pipelines.get(text) ?? await this.#device.createComputePipelineAsync({
            layout: "auto", compute: { module: this.#device.createShaderModule({ code: text }), entryPoint: "main" },
        });
        this.#pipelines.set(text, pipeline);
        const entries = Object.entries(scalars);
        // Every scalar takes two words.
        const info = new Uint32Array(2 * entries.length);
        for (const [scalar, value] of entries) {
            const place = Number(text.match(new RegExp(`^const ${scalar}: u32 = (\\d+)u;`, "m"))[1]);
            info[place] = value;
        }
        const buffer = this.#buffer(info.byteLength, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST);
        this.#device.queue.writeBuffer(buffer, 0, info);
        const resources = [...buffers, buffer].map((one) => (one instanceof GPUBuffer ? { buffer: one } : one));
        const group = this.#device.createBindGroup({
            layout: pipeline.getBindGroupLayout(0), entries: resources.map((resource, binding) => ({ binding, resource })),
        });
        this.#launches.push({ pipeline, group, workgroups: Math.ceil(invocations / WORKGROUP) });
    }

    #part(start, count) {
        return { buffer: this.#constants, offset: 4 * start, size: 4 * count };
    }

    #buffer(size, usage) {
        return this.#device.createBuffer({ size, usage });
    }
}
