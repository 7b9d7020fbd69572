/* What computes the tables above: the same arithmetic, in the same order, as src/micro of the Rust crate. C99. */

enum { LANES = 8 };
#define BYTE 0.003921569f

typedef char shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];

/* A frame of the camera as the bytes of the network's input. */

typedef struct {
    size_t first, end;
    float centre, scale, sum;
} taps;

static float triangle(const taps *of, size_t input)
{
    float distance = ((float)input - of->centre) / of->scale;
    if (distance < 0.0f)
        distance = -distance;
    return distance < 1.0f ? 1.0f - distance : 0.0f;
}

static taps taps_of(size_t output, size_t from, size_t to)
{
    taps of;
    float ratio = (float)from / (float)to;
    float centre = ((float)output + 0.5f) * ratio;
    of.scale = ratio < 1.0f ? 1.0f : ratio;
    of.centre = centre - 0.5f;
    of.first = centre > of.scale ? (size_t)(centre - of.scale) : 0;
    if (of.first > from - 1)
        of.first = from - 1;
    float end = centre + of.scale;
    of.end = (size_t)end;
    if ((float)of.end != end)
        of.end += 1;
    if (of.end < of.first + 1)
        of.end = of.first + 1;
    if (of.end > from)
        of.end = from;
    of.sum = 0.0f;
    for (size_t input = of.first; input < of.end; input++)
        of.sum += triangle(&of, input);
    return of;
}

static uint8_t rounded(float value)
{
    if (value < 0.0f)
        value = 0.0f;
    if (value > 255.0f)
        value = 255.0f;
    uint8_t below = (uint8_t)value;
    return value - (float)below >= 0.5f ? (uint8_t)(below + 1) : below;
}

static void put(const arena *at, size_t place, uint8_t byte)
{
#if INT8_INPUT
    at->bytes[INPUT_START + place] = (int8_t)((int)byte - 128);
#else
    at->floats[INPUT_START + place] = (float)byte * BYTE;
#endif
}

/* A pixel of a frame with so many channels, to the channels of the network. */
static void put_pixel(const arena *at, size_t position, size_t channels, const uint8_t *bytes)
{
    if (channels == 3 && INPUT_CHANNELS == 1) {
        uint32_t luma = bytes[0] * 19595u + bytes[1] * 38470u + bytes[2] * 7471u + 0x8000u;
        put(at, position, (uint8_t)(luma >> 16));
        return;
    }
    for (size_t channel = 0; channel < INPUT_CHANNELS; channel++)
        put(at, position * INPUT_CHANNELS + channel, bytes[channels == 3 ? channel : 0]);
}

static void put_frame(const arena *at, const uint8_t *frame, size_t rows, size_t columns, size_t channels)
{
    if (rows == INPUT_ROWS && columns == INPUT_COLUMNS) {
        for (size_t position = 0; position < rows * columns; position++)
            put_pixel(at, position, channels, frame + position * channels);
        return;
    }
    float *scratch = at->floats + RESIZE_START;
    for (size_t y = 0; y < INPUT_ROWS; y++) {
        taps vertical = taps_of(y, rows, INPUT_ROWS);
        for (size_t i = 0; i < columns * channels; i++)
            scratch[i] = 0.0f;
        for (size_t row = vertical.first; row < vertical.end; row++) {
            float weight = triangle(&vertical, row) / vertical.sum;
            const uint8_t *bytes = frame + row * columns * channels;
            for (size_t i = 0; i < columns * channels; i++)
                scratch[i] += (float)bytes[i] * weight;
        }
        for (size_t x = 0; x < INPUT_COLUMNS; x++) {
            taps horizontal = taps_of(x, columns, INPUT_COLUMNS);
            float sums[3] = {0.0f, 0.0f, 0.0f};
            for (size_t column = horizontal.first; column < horizontal.end; column++) {
                float weight = triangle(&horizontal, column) / horizontal.sum;
                for (size_t channel = 0; channel < channels; channel++)
                    sums[channel] += scratch[column * channels + channel] * weight;
            }
            uint8_t bytes[3] = {rounded(sums[0]), rounded(sums[1]), rounded(sums[2])};
            put_pixel(at, y * INPUT_COLUMNS + x, channels, bytes);
        }
    }
}

/* Layers. Features are [rows, columns, channels]; weights of convolutions [outputs / LANES, kernel, kernel, inputs, LANES]. */

typedef struct {
    size_t row, column, top, bottom, left, right;
} window;

/* Of a kernel at an output position, what does not lie in the border of zeros. */
static window window_of(const conv_shape *shape, size_t position)
{
    window of;
    of.row = position / shape->columns * shape->stride;
    of.column = position % shape->columns * shape->stride;
    of.top = of.row < shape->padding ? shape->padding - of.row : 0;
    of.left = of.column < shape->padding ? shape->padding - of.column : 0;
    of.bottom = shape->height + shape->padding - of.row;
    of.right = shape->width + shape->padding - of.column;
    if (of.bottom > shape->kernel)
        of.bottom = shape->kernel;
    if (of.right > shape->kernel)
        of.right = shape->kernel;
    return of;
}

/* Eight sums by name in a function of their own: only so do compilers for small machines keep them in registers. */
#if defined(__GNUC__)
#define NOT_INLINED __attribute__((noinline))
#else
#define NOT_INLINED
#endif
#define ADD_PRODUCTS(name, number, input_type)                                                                          \
    static NOT_INLINED void name(const input_type *values, const input_type *end, const WEIGHT_TYPE *weights,           \
                                 number zero, number *sums)                                                             \
    {                                                                                                                   \
        number s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];                                                  \
        number s4 = sums[4], s5 = sums[5], s6 = sums[6], s7 = sums[7];                                                  \
        for (; values != end; values++, weights += LANES) {                                                             \
            number value = *values - zero;                                                                              \
            s0 += value * WEIGHT(weights[0]);                                                                           \
            s1 += value * WEIGHT(weights[1]);                                                                           \
            s2 += value * WEIGHT(weights[2]);                                                                           \
            s3 += value * WEIGHT(weights[3]);                                                                           \
            s4 += value * WEIGHT(weights[4]);                                                                           \
            s5 += value * WEIGHT(weights[5]);                                                                           \
            s6 += value * WEIGHT(weights[6]);                                                                           \
            s7 += value * WEIGHT(weights[7]);                                                                           \
        }                                                                                                               \
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;                                                         \
        sums[4] = s4, sums[5] = s5, sums[6] = s6, sums[7] = s7;                                                         \
    }

/* The same where every channel is convolved by itself, for one row of the window. */
#if USES_DEPTHWISE
#define ADD_CHANNELS(name, number, input_type)                                                                          \
    static NOT_INLINED void name(const input_type *values, size_t pixels, size_t channels, size_t count,                \
                                 const WEIGHT_TYPE *weights, number zero, number *sums)                                 \
    {                                                                                                                   \
        if (count < LANES) {                                                                                            \
            for (size_t pixel = 0; pixel < pixels; pixel++)                                                             \
                for (size_t lane = 0; lane < count; lane++)                                                             \
                    sums[lane] += (values[pixel * channels + lane] - zero) * WEIGHT(weights[pixel * LANES + lane]);     \
            return;                                                                                                     \
        }                                                                                                               \
        number s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];                                                  \
        number s4 = sums[4], s5 = sums[5], s6 = sums[6], s7 = sums[7];                                                  \
        for (; pixels > 0; pixels--, values += channels, weights += LANES) {                                            \
            s0 += (values[0] - zero) * WEIGHT(weights[0]);                                                              \
            s1 += (values[1] - zero) * WEIGHT(weights[1]);                                                              \
            s2 += (values[2] - zero) * WEIGHT(weights[2]);                                                              \
            s3 += (values[3] - zero) * WEIGHT(weights[3]);                                                              \
            s4 += (values[4] - zero) * WEIGHT(weights[4]);                                                              \
            s5 += (values[5] - zero) * WEIGHT(weights[5]);                                                              \
            s6 += (values[6] - zero) * WEIGHT(weights[6]);                                                              \
            s7 += (values[7] - zero) * WEIGHT(weights[7]);                                                              \
        }                                                                                                               \
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;                                                         \
        sums[4] = s4, sums[5] = s5, sums[6] = s6, sums[7] = s7;                                                         \
    }
#else
#define ADD_CHANNELS(name, number, input_type)
#define add_channels(values, pixels, channels, count, weights, zero, sums)
#define add_channels_int8(values, pixels, channels, count, weights, zero, sums)
#endif

#define CONV_SUMS(add_products, add_channels, zero)                                                                     \
    for (size_t y = of.top; y < of.bottom; y++) {                                                                       \
        size_t row = (of.row + y - shape->padding) * shape->width + of.column + of.left - shape->padding;               \
        size_t tap = (y * shape->kernel + of.left) * shape->inputs_per_output, pixels = of.right - of.left;             \
        const WEIGHT_TYPE *weights = group + tap * LANES;                                                               \
        if (USES_DEPTHWISE && shape->inputs_per_output < shape->inputs)                                                 \
            add_channels(input + row * shape->inputs + first, pixels, shape->inputs, count, weights, zero, sums);       \
        else                                                                                                            \
            add_products(input + row * shape->inputs, input + (row + pixels) * shape->inputs, weights, zero, sums);     \
    }

#define WINDOWS(type, lowest, wins)                                                                                     \
    size_t columns = (layer->shape.width + 1) / 2, channels = layer->shape.inputs;                                      \
    for (size_t at = 0; at < layer->output.len; at++) {                                                                 \
        size_t row = at / channels / columns, column = at / channels % columns, channel = at % channels;                \
        type largest = lowest;                                                                                          \
        for (size_t y = row > 0 ? 2 * row - 1 : 0; y < 2 * row + 2 && y < layer->shape.height; y++)                     \
            for (size_t x = column > 0 ? 2 * column - 1 : 0; x < 2 * column + 2 && x < layer->shape.width; x++) {       \
                type value = input[(y * layer->shape.width + x) * channels + channel];                                  \
                if (wins)                                                                                               \
                    largest = value;                                                                                    \
            }                                                                                                           \
        output[at] = largest;                                                                                           \
    }

#if USES_FLOAT
/* What is not a number stays so: a damaged network must be noticed. */
static float finished(float value, int relu)
{
    return relu && value < 0.0f ? 0.0f : value;
}

static void affine(const table_layer *layer, const float *residual, float *values)
{
    size_t channels = layer->channels;
    for (size_t at = 0; at < layer->output.len; at++) {
        float value = values[at] * floats[layer->weights + at % channels] + floats[layer->bias + at % channels];
        if (residual)
            value += residual[at];
        values[at] = finished(value, layer->relu);
    }
}

static void max_pool(const table_layer *layer, const float *input, float *output)
{
    WINDOWS(float, -INFINITY, value > largest || value != value)
}

static void global_pool(const table_layer *layer, const float *input, float *output)
{
    size_t channels = layer->channels, pixels = layer->input.len / channels;
    for (size_t channel = 0; channel < channels; channel++) {
        float sum = 0.0f;
        for (size_t pixel = 0; pixel < pixels; pixel++)
            sum += input[pixel * channels + channel];
        output[channel] = sum / (float)pixels;
    }
}

#define FLOAT_LAYERS(conv, linear, constants)                                                                           \
    static void conv(const table_layer *layer, const float *input, float *output)                                       \
    {                                                                                                                   \
        const conv_shape *shape = &layer->shape;                                                                        \
        size_t per_group = shape->kernel * shape->kernel * shape->inputs_per_output * LANES;                            \
        for (size_t first = 0; first < shape->outputs; first += LANES)                                                  \
            for (size_t position = 0; position < shape->rows * shape->columns; position++) {                            \
                window of = window_of(shape, position);                                                                 \
                const WEIGHT_TYPE *group = constants + layer->weights + first / LANES * per_group;                      \
                size_t count = shape->outputs - first < LANES ? shape->outputs - first : LANES;                         \
                float sums[LANES] = {0.0f};                                                                             \
                CONV_SUMS(add_products, add_channels, 0.0f)                                                             \
                for (size_t lane = 0; lane < count; lane++) {                                                           \
                    float *result = &output[position * shape->outputs + first + lane];                                  \
                    float value = sums[lane] + floats[layer->bias + first + lane];                                      \
                    *result = finished(layer->residual.len ? value + *result : value, layer->relu);                     \
                }                                                                                                       \
            }                                                                                                           \
    }                                                                                                                   \
    static void linear(const table_layer *layer, const float *input, float *output)                                     \
    {                                                                                                                   \
        size_t outputs = layer->output.len;                                                                             \
        for (size_t i = 0; i < outputs; i++) {                                                                          \
            float sum = floats[layer->bias + i];                                                                        \
            for (size_t j = 0; j < layer->input.len; j++)                                                               \
                sum += input[j] * WEIGHT(constants[layer->weights + j * outputs + i]);                                  \
            output[i] = sum;                                                                                            \
        }                                                                                                               \
    }
#endif

#if USES_FLOAT && !USES_HALF
#define WEIGHT_TYPE float
#define WEIGHT(value) (value)
ADD_PRODUCTS(add_products, float, float)
ADD_CHANNELS(add_channels, float, float)
FLOAT_LAYERS(conv, linear, floats)
#undef WEIGHT
#undef WEIGHT_TYPE
#endif

#if USES_HALF
/* The value of a finite float16: exact, also where it is subnormal. */
static float from_half(uint16_t bits)
{
#if defined(__ARM_FP16_FORMAT_IEEE)
    __fp16 half;
    memcpy(&half, &bits, sizeof half);
    return half;
#else
    union {
        uint32_t bits;
        float value;
    } magnitude, unit;
    magnitude.bits = (uint32_t)(bits & 0x7fff) << 13;
    unit.bits = (uint32_t)239 << 23;
    magnitude.value *= unit.value;
    return bits & 0x8000 ? -magnitude.value : magnitude.value;
#endif
}

#define WEIGHT_TYPE uint16_t
#define WEIGHT(value) from_half(value)
ADD_PRODUCTS(add_products, float, float)
ADD_CHANNELS(add_channels, float, float)
FLOAT_LAYERS(conv, linear, halves)
#undef WEIGHT
#undef WEIGHT_TYPE
#endif

#if USES_INT8
static int8_t rescaled(const table_layer *layer, int64_t product, const int8_t *residual)
{
    if (residual)
        product += layer->residual_multiplier * ((int32_t)*residual - layer->residual_zero);
    product = ((product + ((int64_t)1 << (layer->bits - 1))) >> layer->bits) + layer->zero;
    return (int8_t)(product < -128 ? -128 : product > 127 ? 127 : product);
}

#define WEIGHT_TYPE int8_t
#define WEIGHT(value) (int32_t)(value)
ADD_PRODUCTS(add_products_int8, int32_t, int8_t)
ADD_CHANNELS(add_channels_int8, int32_t, int8_t)
static void conv_int8(const table_layer *layer, const int8_t *input, int8_t *output)
{
    const conv_shape *shape = &layer->shape;
    size_t per_group = shape->kernel * shape->kernel * shape->inputs_per_output * LANES;
    for (size_t first = 0; first < shape->outputs; first += LANES)
        for (size_t position = 0; position < shape->rows * shape->columns; position++) {
            window of = window_of(shape, position);
            const int8_t *group = int8s + layer->weights + first / LANES * per_group;
            size_t count = shape->outputs - first < LANES ? shape->outputs - first : LANES;
            int32_t sums[LANES] = {0};
            CONV_SUMS(add_products_int8, add_channels_int8, layer->input_zero)
            for (size_t lane = 0; lane < count; lane++) {
                int8_t *result = &output[position * shape->outputs + first + lane];
                int64_t sum = (int64_t)sums[lane] + int32s[layer->bias + first + lane];
                sum *= int32s[layer->multipliers + first + lane];
                *result = rescaled(layer, sum, layer->residual.len ? result : NULL);
            }
        }
}
#undef WEIGHT
#undef WEIGHT_TYPE

static void affine_int8(const table_layer *layer, const int8_t *residual, int8_t *values)
{
    for (size_t at = 0; at < layer->output.len; at++) {
        size_t channel = at % layer->channels;
        int64_t product = (int64_t)((int32_t)values[at] - layer->input_zero) * int32s[layer->multipliers + channel];
        product += int64s[layer->bias + channel];
        values[at] = rescaled(layer, product, residual ? &residual[at] : NULL);
    }
}

static void max_pool_int8(const table_layer *layer, const int8_t *input, int8_t *output)
{
    WINDOWS(int8_t, INT8_MIN, value > largest)
}

static void classify_int8(const table_layer *layer, const int8_t *input, float *output)
{
    size_t outputs = layer->output.len, channels = layer->channels, pixels = layer->input.len / channels;
    for (size_t i = 0; i < outputs; i++) {
        int64_t sum = int64s[layer->bias + i];
        for (size_t channel = 0; channel < channels; channel++) {
            int32_t values = 0;
            for (size_t pixel = 0; pixel < pixels; pixel++)
                values += input[pixel * channels + channel];
            values -= (int32_t)pixels * layer->input_zero;
            sum += (int64_t)values * int8s[layer->weights + channel * outputs + i];
        }
        output[i] = (float)sum * floats[layer->scale + i];
    }
}
#endif

#if USES_FLOAT && USES_INT8
static void quantize(const table_layer *layer, const float *input, int8_t *output)
{
    for (size_t at = 0; at < layer->output.len; at++) {
        float raised = input[at] * layer->factor + (float)(layer->zero + 128) + 0.5f;
        raised = raised < 0.0f ? 0.0f : raised > 255.0f ? 255.0f : raised;
        output[at] = (int8_t)((int)raised - 128);
    }
}

static void dequantize(const table_layer *layer, const int8_t *input, float *output)
{
    for (size_t at = 0; at < layer->output.len; at++)
        output[at] = (float)((int32_t)input[at] - layer->input_zero) * layer->factor;
}
#endif

/* Brings what a layer adds, or changes in its place, to where it writes. */
#define BRING(memory, from)                                                                                             \
    if (from.len && from.start != layer->output.start)                                                                  \
        memmove(memory + layer->output.start, memory + from.start, from.len * sizeof *memory);

static void step(const table_layer *layer, const arena *at)
{
    switch (layer->op) {
#if USES_FLOAT
    case CONV:
        BRING(at->floats, layer->residual)
        conv(layer, at->floats + layer->input.start, at->floats + layer->output.start);
        break;
    case AFFINE:
        BRING(at->floats, layer->input)
        affine(layer, layer->residual.len ? at->floats + layer->residual.start : NULL, at->floats + layer->output.start);
        break;
    case MAX_POOL:
        max_pool(layer, at->floats + layer->input.start, at->floats + layer->output.start);
        break;
    case GLOBAL_POOL:
        global_pool(layer, at->floats + layer->input.start, at->floats + layer->output.start);
        break;
    case LINEAR:
        linear(layer, at->floats + layer->input.start, at->floats + layer->output.start);
        break;
#endif
#if USES_FLOAT && USES_INT8
    case QUANTIZE:
        quantize(layer, at->floats + layer->input.start, at->bytes + layer->output.start);
        break;
    case DEQUANTIZE:
        dequantize(layer, at->bytes + layer->input.start, at->floats + layer->output.start);
        break;
#endif
#if USES_INT8
    case CONV_INT8:
        BRING(at->bytes, layer->residual)
        conv_int8(layer, at->bytes + layer->input.start, at->bytes + layer->output.start);
        break;
    case AFFINE_INT8:
        BRING(at->bytes, layer->input)
        affine_int8(layer, layer->residual.len ? at->bytes + layer->residual.start : NULL, at->bytes + layer->output.start);
        break;
    case MAX_POOL_INT8:
        max_pool_int8(layer, at->bytes + layer->input.start, at->bytes + layer->output.start);
        break;
    case CLASSIFY_INT8:
        classify_int8(layer, at->bytes + layer->input.start, at->floats + layer->output.start);
        break;
#endif
    default:
        break;
    }
}

/* From logits to a verdict. */

static int is_finite(float value)
{
    return value - value == 0.0f;
}

static int32_t largest(const float *logits)
{
    int32_t best = 0;
    for (int32_t class = 1; class < STEADFAST_CLASSES; class++)
        if (logits[class] > logits[best])
            best = class;
    return best;
}

static int32_t passes(const float *logits)
{
    if (!HAS_GOOD)
        return -1;
    float best[2] = {-INFINITY, -INFINITY};
    for (int class = 0; class < STEADFAST_CLASSES; class++) {
        if (!is_finite(logits[class]))
            return 0;
        if (logits[class] > best[is_good[class]])
            best[is_good[class]] = logits[class];
    }
    return HAS_THRESHOLD ? best[1] - best[0] >= THRESHOLD : is_good[largest(logits)];
}

static int arena_of(void *memory, size_t size, arena *at)
{
    if (size < STEADFAST_ARENA_BYTES || (uintptr_t)memory % sizeof(float) != 0)
        return STEADFAST_ARENA;
    at->floats = memory;
    at->bytes = (int8_t *)(at->floats + FLOATS);
    return STEADFAST_OK;
}

static void classify(const arena *at, const uint8_t *frame, size_t rows, size_t columns, size_t channels, float *logits)
{
    put_frame(at, frame, rows, columns, channels);
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        step(&layers[i], at);
    memcpy(logits, at->floats + layers[sizeof layers / sizeof *layers - 1].output.start, STEADFAST_CLASSES * sizeof *logits);
}

int steadfast_classify(const uint8_t *pixels, size_t pixel_bytes, void *memory, size_t memory_bytes, steadfast_verdict *verdict)
{
    arena at;
    if (!pixels || !memory || !verdict)
        return STEADFAST_NULL;
    if (pixel_bytes != STEADFAST_FRAME_BYTES)
        return STEADFAST_FRAME;
    int wrong = arena_of(memory, memory_bytes, &at);
    if (wrong)
        return wrong;
    classify(&at, pixels, STEADFAST_FRAME_ROWS, STEADFAST_FRAME_COLUMNS, STEADFAST_FRAME_CHANNELS, verdict->logits);
    verdict->label = largest(verdict->logits);
    verdict->passes = passes(verdict->logits);
    return STEADFAST_OK;
}

/* Whether logits are those of the exporting program. */
static int is_golden(const float *logits, const float *golden)
{
    for (int class = 0; class < STEADFAST_CLASSES; class++) {
        float difference = logits[class] - golden[class];
        if (!(difference <= GOLDEN_TOLERANCE && difference >= -GOLDEN_TOLERANCE))
            return 0;
    }
    return 1;
}

int steadfast_self_test(uint8_t *frame, size_t frame_bytes, void *memory, size_t memory_bytes)
{
    arena at;
    float logits[STEADFAST_CLASSES];
    if (!frame || !memory)
        return STEADFAST_NULL;
    if (frame_bytes != STEADFAST_FRAME_BYTES)
        return STEADFAST_FRAME;
    int wrong = arena_of(memory, memory_bytes, &at);
    if (wrong)
        return wrong;
    for (size_t i = 0; i < sizeof golden_inputs / sizeof *golden_inputs; i++) {
        classify(&at, golden_inputs[i], INPUT_ROWS, INPUT_COLUMNS, INPUT_CHANNELS, logits);
        if (!is_golden(logits, golden_logits[i]))
            return STEADFAST_SELF_TEST;
    }
    /* A frame of the camera's size, drawn by rule. */
    for (size_t i = 0; i < STEADFAST_FRAME_BYTES; i++) {
        size_t channel = i % STEADFAST_FRAME_CHANNELS, pixel = i / STEADFAST_FRAME_CHANNELS;
        size_t y = pixel / STEADFAST_FRAME_COLUMNS, x = pixel % STEADFAST_FRAME_COLUMNS;
        size_t a = y * 8 / STEADFAST_FRAME_ROWS, b = x * 8 / STEADFAST_FRAME_COLUMNS;
        frame[i] = (uint8_t)((a * a * 7 + b * 29 + a * b * 13 + channel * 101) * 37 + ((x ^ y) & 15));
    }
    classify(&at, frame, STEADFAST_FRAME_ROWS, STEADFAST_FRAME_COLUMNS, STEADFAST_FRAME_CHANNELS, logits);
    return is_golden(logits, frame_logits) ? STEADFAST_OK : STEADFAST_SELF_TEST;
}
