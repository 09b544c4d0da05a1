// From decoded images to the network's input in one launch, for images of different sizes. Two families of kernels:
// preprocess_… for evaluation, and augment_… for training, which also changes colors, shifts, mirrors and erases.
//
// The resized pixels equal Pillow's to the bit. Its 8-bit resize is integer arithmetic: weights of 22 bits, which the
// host makes in double (trt_cls/preprocessing/pillow.py); a horizontal pass, rounded and clipped to 8 bits; a
// vertical pass over that. Sums of integers don't depend on their order, so they may be split as suits the device.
// They fit 32 bits: weights add up to 1, with bicubic's negative lobes to 1.27 in size, and 1.27 * 255 * 2^22 < 2^31.
//
// A block makes one tile of one image's output, all channels. It takes the source rows that the tile needs, CHUNK at a
// time: resampled horizontally they go to shared memory, one word a pixel, and each thread adds them to the sums of its
// own output pixels. Shared memory stays at 11 KB however far the image is reduced.
//
// The floor is each byte in once and each byte out once. With S = 1 (bilinear) or 2 (bicubic), blocks beside each other
// share a rim: a source byte is read by (1 + 2S / TILE_HEIGHT) * (1 + 2S / TILE_WIDTH) blocks, the second time from the
// L2 cache as neighbors run together. Bytes that the crop does not show are never read.
//
// Instructions, not bytes, are what the kernel is short of: source pixels are loaded four at a time as aligned words,
// and normalization is a table of 256 values a channel, which the host makes.

typedef unsigned char Byte;

constexpr int TILE_WIDTH = 32;  // a warp in a row: the weights of a group, and what it writes, are contiguous
constexpr int TILE_HEIGHT = 32;
constexpr int WARPS = 8;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int BLOCKS = 4;  // on a multiprocessor: Turing has room for 1,024 threads
#else
constexpr int BLOCKS = 5;  // at most 48 registers a thread
#endif
constexpr int CHUNK = 64;  // source rows
constexpr int TOGETHER = 2;  // source rows that a thread resamples side by side, with the same weights
constexpr int GROUP = 4;  // taps whose pixels and weights are loaded together
constexpr int PRECISION = 22;  // bits of a weight behind the point
constexpr int LEVELS = 256;    // of a byte
// So many pixels end within CHANNELS words, wherever in the first of these they begin.
template <int CHANNELS>
constexpr int REACH = (4 * CHANNELS - 3) / CHANNELS;

// One image of the batch. The host has the same layout in packing.SOURCE.
struct Source {
    long long pixels;  // where its pixels [height, width, channels] begin, in bytes
    long long across;  // where the table of its columns begins in the tables
    long long down;    // where the table of its rows begins
    long long width;
};

// For each of n outputs along one axis: its window, which is the first source pixel and their number, and its weights,
// in groups of four with zeros behind the last: [group][output][4].
struct Axis {
    const int2* __restrict__ windows;
    const int4* __restrict__ weights;
    int outputs;

    __device__ Axis(const int* table, int n)
        : windows(reinterpret_cast<const int2*>(table)),
          weights(reinterpret_cast<const int4*>(table + (2 * n + 3) / 4 * 4)),
          outputs(n) {}

    __device__ int end(int output) const { return windows[output].x + windows[output].y; }
};

__device__ int weight(const int4& group, int tap) {
    return tap == 0 ? group.x : tap == 1 ? group.y : tap == 2 ? group.z : group.w;
}

__device__ int byte_of(unsigned word, int index) { return static_cast<int>(__byte_perm(word, 0, 0x4440 + index)); }

// Half of the last bit that is kept: adding the weighted pixels to it rounds them.
constexpr int ROUNDING = 1 << (PRECISION - 1);

__device__ unsigned rounded(int sum) { return static_cast<unsigned>(__vimin_s32_relu(sum >> PRECISION, LEVELS - 1)); }

template <int CHANNELS>
__device__ void restart(int (&sums)[CHANNELS]) {
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) sums[c] = ROUNDING;
}

// The next four pixels of a row, from any address on; the first `taps` of them count. `low` is the first of the words
// that hold them, and becomes the last, with which the next group begins. The last is loaded only where a pixel that
// counts may reach into it. Others may hold no such pixel: behind the last one of a batch there are SLACK bytes
// (packing.py).
template <int CHANNELS>
__device__ void load_group(const unsigned* __restrict__ words, unsigned shift, int taps, unsigned& low,
                           unsigned (&bytes)[CHANNELS]) {
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) {
        unsigned high = low;
        if (i + 1 < CHANNELS || taps > REACH<CHANNELS>) high = words[i + 1];
        bytes[i] = __funnelshift_r(low, high, shift);
        low = high;
    }
}

// Column x of `rows` source rows from `begin` on, resampled into the chunk; a warp takes every WARPS-th row.
template <int CHANNELS>
__device__ void resample_across(const Byte* __restrict__ pixels, const Source& source, const Axis& across, int x,
                                int begin, int rows, unsigned (*chunk)[TILE_WIDTH]) {
    const int2 window = across.windows[x];
    const unsigned stride = static_cast<unsigned>(source.width) * CHANNELS;
    const long long left = source.pixels + static_cast<long long>(window.x) * CHANNELS;
    unsigned* resampled = &chunk[threadIdx.y][threadIdx.x];
    for (int row = threadIdx.y; row < rows; row += WARPS * TOGETHER, resampled += WARPS * TOGETHER * TILE_WIDTH) {
        const unsigned* __restrict__ words[TOGETHER];
        unsigned shift[TOGETHER], low[TOGETHER];
        int sums[TOGETHER][CHANNELS];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            restart<CHANNELS>(sums[i]);
            const unsigned at = begin + min(row + i * WARPS, rows - 1);  // the last one again is cheaper than a branch
            const unsigned long long offset = left + static_cast<unsigned long long>(at) * stride;
            words[i] = reinterpret_cast<const unsigned*>(pixels + (offset & ~3ull));
            shift[i] = static_cast<unsigned>(offset) * 8;  // of which a shift takes the last five bits
            low[i] = words[i][0];
        }
        int taps = window.y, at = x;
#pragma unroll 1
        do {
            const int4 group = across.weights[at];
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                unsigned bytes[CHANNELS];
                load_group<CHANNELS>(words[i], shift[i], taps, low[i], bytes);
                words[i] += CHANNELS;
#pragma unroll
                for (int k = 0; k < GROUP * CHANNELS; k++)
                    sums[i][k % CHANNELS] += byte_of(bytes[k / 4], k % 4) * weight(group, k / CHANNELS);
            }
            taps -= GROUP, at += across.outputs;
        } while (taps > 0);
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            unsigned pixel = rounded(sums[i][0]);
#pragma unroll
            for (int c = 1; c < CHANNELS; c++) pixel |= rounded(sums[i][c]) << 8 * c;
            if (row + i * WARPS < rows) resampled[i * WARPS * TILE_WIDTH] = pixel;
        }
    }
}

// Row y of the output from a chunk that begins with source row `begin` and holds all of its window.
template <int CHANNELS>
__device__ void resample_down(const Axis& down, int y, int begin, const unsigned (*chunk)[TILE_WIDTH],
                              int (&sums)[CHANNELS]) {
    const int2 window = down.windows[y];
    const unsigned* column = &chunk[window.x - begin][threadIdx.x];
    int tap = 0, at = y;
#pragma unroll 1
    do {
        const int4 group = down.weights[at];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const unsigned pixel = column[i * TILE_WIDTH];  // behind the window it is anything, and its weight 0
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) sums[c] += byte_of(pixel, c) * weight(group, i);
        }
        tap += GROUP, at += down.outputs, column += GROUP * TILE_WIDTH;
    } while (tap < window.y);
}

// Adds to row y of the output what the source rows [begin, end), which are in the chunk, contribute to it.
template <int CHANNELS>
__device__ void accumulate_down(const Axis& down, int y, int begin, int end, const unsigned (*chunk)[TILE_WIDTH],
                                int (&sums)[CHANNELS]) {
    const int2 window = down.windows[y];
    const int last = min(end, window.x + window.y);
#pragma unroll 1
    for (int row = max(begin, window.x); row < last; row++) {
        const int tap = row - window.x;
        const int factor = reinterpret_cast<const int*>(down.weights + tap / GROUP * down.outputs + y)[tap % GROUP];
        const unsigned pixel = chunk[row - begin][threadIdx.x];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) sums[c] += byte_of(pixel, c) * factor;
    }
}

// The tile (blockIdx.x, blockIdx.y) of image blockIdx.z; `emit(x, y, sums)` gets the weighted sums of each of its pixels,
// which `rounded` makes bytes. Where the source rows of the whole tile fit the chunk they are resampled once. Else, as
// an image is reduced to less than half, the tile is made by bands of one row a warp, from as many chunks as they take.
template <int CHANNELS, typename Emit>
__device__ void resample_tile(const Byte* __restrict__ pixels, const Source& source, const int* __restrict__ tables,
                              int height, int width, const Emit& emit) {
    __shared__ unsigned chunk[CHUNK + GROUP - 1][TILE_WIDTH];
    const Axis across(tables + source.across, width);
    const Axis down(tables + source.down, height);
    const int x = blockIdx.x * TILE_WIDTH + threadIdx.x;
    const int top = blockIdx.y * TILE_HEIGHT;
    const int bottom = min(top + TILE_HEIGHT, height);
    // Windows begin and end no earlier than those of the row above: the first and the last bound them all.
    const int step = down.end(bottom - 1) - down.windows[top].x <= CHUNK ? TILE_HEIGHT : WARPS;
    for (int band = top; band < bottom; band += step) {
        const int band_end = min(band + step, bottom);
        const int first = down.windows[band].x, end = down.end(band_end - 1);
        const bool whole = end - first <= CHUNK;
        int sums[CHANNELS];
        restart<CHANNELS>(sums);
        for (int begin = first; begin < end; begin += CHUNK) {
            const int chunk_end = min(begin + CHUNK, end);
            // Threads past the right edge come to the barriers too, and do nothing else.
            if (x < width) resample_across<CHANNELS>(pixels, source, across, x, begin, chunk_end - begin, chunk);
            __syncthreads();
            for (int y = band + static_cast<int>(threadIdx.y); x < width && y < band_end; y += WARPS) {
                if (whole) {
                    resample_down<CHANNELS>(down, y, begin, chunk, sums);
                } else {
                    accumulate_down<CHANNELS>(down, y, begin, chunk_end, chunk, sums);
                    if (chunk_end < end) break;
                }
                emit(x, y, sums);
                restart<CHANNELS>(sums);
            }
            __syncthreads();  // all have read the chunk before it is overwritten
        }
    }
}

// (pixel / divisor - mean) / std of each byte of each source channel: read by the whole block from here on, once the
// barriers of resample_tile are passed.
template <int CHANNELS>
__device__ void load_values(const float* __restrict__ normalized, float (&values)[CHANNELS * LEVELS]) {
#pragma unroll
    for (int i = threadIdx.y * TILE_WIDTH + threadIdx.x; i < CHANNELS * LEVELS; i += TILE_WIDTH * WARPS)
        values[i] = normalized[i];
}

// One image of the output [images, CHANNELS, height, width], whose planes run from the last to the first if `reversed`.
template <int CHANNELS>
struct Planes {
    float* __restrict__ first;
    int step;
    int width;

    __device__ Planes(float* output, int reversed, int height, int width)
        : first(output + (static_cast<long long>(blockIdx.z) * CHANNELS + (reversed ? CHANNELS - 1 : 0)) * height * width),
          step(reversed ? -height * width : height * width),
          width(width) {}

    __device__ float& at(int channel, int y, int x) const { return first[y * width + x + channel * step]; }
};

template <int CHANNELS>
__device__ void preprocess_tile(const Byte* __restrict__ pixels, const Source* __restrict__ sources,
                                const int* __restrict__ tables, const float* __restrict__ normalized, int reversed,
                                int height, int width, float* __restrict__ output) {
    __shared__ float values[CHANNELS * LEVELS];
    load_values<CHANNELS>(normalized, values);
    const Planes<CHANNELS> planes(output, reversed, height, width);
    resample_tile<CHANNELS>(pixels, sources[blockIdx.z], tables, height, width, [&](int x, int y, const int* sums) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) planes.at(c, y, x) = values[c * LEVELS + rounded(sums[c])];
    });
}

// What training does to one image. The host has the same layout in packing.CHANGE.
struct Change {
    float hue, saturation, contrast;  // degrees, a shift, a factor
    int colored;                      // whether these three hold
    int mirrored;
    int down, across;              // a shift, before the mirror; by less than a side, else some output stays unwritten
    int left, top, right, bottom;  // of the output, mirrored already: zero there
};

// The colors below repeat trt_cls/data/augmentation.py, operation by operation, each rounded by itself. There the
// products of `fused` are float64, and so they are here: float32's own would differ where a sum is halfway.
__device__ float fused(float a, float b, float c) { return __double2float_rn(__fma_rn(a, b, c)); }

__device__ float clipped(float value) { return fminf(fmaxf(value, 0.0f), 1.0f); }

// Three channels to hue (0..360), saturation and value, and back, both in place.
__device__ void to_hsv(float (&pixel)[3]) {
    constexpr float EPSILON = 1.1920928955078125e-7f;  // 2^-23
    const float blue = pixel[0], green = pixel[1], red = pixel[2];
    const float value = fmaxf(fmaxf(blue, green), red);
    const float spread = __fsub_rn(value, fminf(fminf(blue, green), red));
    const float scale = __fdiv_rn(60.0f, __fadd_rn(spread, EPSILON));
    float distance, start;
    if (value == red) {
        distance = __fsub_rn(green, blue), start = green < blue ? 360.0f : 0.0f;
    } else if (value == green) {
        distance = __fsub_rn(blue, red), start = 120.0f;
    } else {
        distance = __fsub_rn(red, green), start = 240.0f;
    }
    pixel[0] = fused(distance, scale, start);
    pixel[1] = __fdiv_rn(spread, __fadd_rn(value, EPSILON));
    pixel[2] = value;
}

__device__ void to_rgb(float (&pixel)[3]) {
    const float h = __fmul_rn(pixel[0], static_cast<float>(6.0 / 360.0));
    const float saturation = pixel[1], value = pixel[2];
    const float below[3] = {fmaxf(__fsub_rn(3.0f, h), __fsub_rn(h, 5.0f)), fmaxf(__fsub_rn(1.0f, h), __fsub_rn(h, 3.0f)),
                            fminf(__fsub_rn(h, 1.0f), __fsub_rn(5.0f, h))};
#pragma unroll
    for (int c = 0; c < 3; c++) pixel[c] = __fmul_rn(value, fused(-saturation, clipped(below[c]), 1.0f));
}

__device__ void change_colors(Byte (&bytes)[3], const Change& change) {
    float pixel[3];
#pragma unroll
    for (int c = 0; c < 3; c++) pixel[c] = __fdiv_rn(static_cast<float>(bytes[c]), 255.0f);
    to_hsv(pixel);
    pixel[0] = __fadd_rn(pixel[0], change.hue);
    if (pixel[0] > 360.0f) pixel[0] = __fsub_rn(pixel[0], 360.0f);
    if (pixel[0] < 0.0f) pixel[0] = __fadd_rn(pixel[0], 360.0f);
    to_rgb(pixel);
    to_hsv(pixel);
    pixel[1] = clipped(__fadd_rn(pixel[1], change.saturation));
    to_rgb(pixel);
#pragma unroll
    for (int c = 0; c < 3; c++) {
        const float scaled = __fadd_rn(__fmul_rn(__fsub_rn(pixel[c], 0.5f), change.contrast), 0.5f);
        bytes[c] = static_cast<Byte>(__fmul_rn(clipped(scaled), 255.0f));
    }
}

__device__ void change_colors(Byte (&)[1], const Change&) {}  // gray has none

// The output that shows pixel `at` of a line that is shifted by `start`. Output i shows pixel start + i, reflected at the
// ends of the line as in `_reflected` of trt_cls/data/augmentation.py: so a pixel may be shown a second time, by the
// output that is `reflected` at an end, if it isn't that end itself. Either may be outside of the line, where the caller
// writes nothing; unsigned, so that no shift overflows.
__device__ unsigned shown(unsigned at, int start, unsigned side, bool reflected) {
    const unsigned end = start > 0 ? side - 1 : 0;
    return !reflected ? at - start : at != end ? 2 * end - at - start : side;
}

template <int CHANNELS>
__device__ void augment_tile(const Byte* __restrict__ pixels, const Source* __restrict__ sources,
                             const Change* __restrict__ changes, const int* __restrict__ tables,
                             const float* __restrict__ normalized, int reversed, int height, int width,
                             float* __restrict__ output) {
    __shared__ float values[CHANNELS * LEVELS];
    load_values<CHANNELS>(normalized, values);
    const Planes<CHANNELS> planes(output, reversed, height, width);
    const Change& change = changes[blockIdx.z];
    resample_tile<CHANNELS>(pixels, sources[blockIdx.z], tables, height, width, [&](int from, int row, const int* sums) {
        Byte bytes[CHANNELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) bytes[c] = static_cast<Byte>(rounded(sums[c]));
        if (change.colored) change_colors(bytes, change);
        const auto write = [&](int column, int y) {
            const int x = change.mirrored ? width - 1 - column : column;
            const bool erased = x >= change.left && x < change.right && y >= change.top && y < change.bottom;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) planes.at(c, y, x) = erased ? 0.0f : values[c * LEVELS + bytes[c]];
        };
        if (!(change.down | change.across)) return write(from, row);
#pragma unroll 1
        for (int i = 0; i < 4; i++) {
            const unsigned x = shown(from, change.across, width, i & 1), y = shown(row, change.down, height, i & 2);
            if (x < static_cast<unsigned>(width) && y < static_cast<unsigned>(height)) write(x, y);
        }
    });
}

// Grid: tiles across, tiles down, images. Block: TILE_WIDTH, WARPS. `reversed`: the output begins with blue.
// `normalized` [CHANNELS, 256] is the output's value for each byte of each source channel.
#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(TILE_WIDTH * WARPS, BLOCKS) NAME
#define PREPROCESS(NAME, CHANNELS)                                                                                  \
    KERNEL(NAME)                                                                                                    \
    (const Byte* __restrict__ pixels, const Source* __restrict__ sources, const int* __restrict__ tables,           \
     const float* __restrict__ normalized, int reversed, int height, int width, float* __restrict__ output) {       \
        preprocess_tile<CHANNELS>(pixels, sources, tables, normalized, reversed, height, width, output);            \
    }
PREPROCESS(preprocess_color_float32, 3)
PREPROCESS(preprocess_gray_float32, 1)

#define AUGMENT(NAME, CHANNELS)                                                                                     \
    KERNEL(NAME)                                                                                                    \
    (const Byte* __restrict__ pixels, const Source* __restrict__ sources, const Change* __restrict__ changes,       \
     const int* __restrict__ tables, const float* __restrict__ normalized, int reversed, int height, int width,     \
     float* __restrict__ output) {                                                                                  \
        augment_tile<CHANNELS>(pixels, sources, changes, tables, normalized, reversed, height, width, output);      \
    }
AUGMENT(augment_color_float32, 3)
AUGMENT(augment_gray_float32, 1)
