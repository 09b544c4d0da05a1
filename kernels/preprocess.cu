// From decoded images to the network's input in one launch, for images of different sizes. Two families of kernels:
// preprocess_… for evaluation, and augment_… for training, which also changes colours, mirrors and erases.
//
// The resized pixels equal Pillow's to the bit. Its 8-bit resize is integer arithmetic: weights of 22 bits, which the
// host makes in double (trt_cls/preprocessing/resampling.py); a horizontal pass, rounded and clipped to 8 bits; a
// vertical pass over that. Sums of integers don't depend on their order, so they may be split as suits the device.
// They fit 32 bits: weights add up to 1, with bicubic's negative lobes to 1.27 in size, and 1.27 * 255 * 2^22 < 2^31.
//
// A block makes one tile of one image's output, all channels. It streams through the source rows that the tile needs,
// CHUNK at a time: resampled horizontally they go to shared memory, and each thread adds them to the sums of its own
// output pixels. Shared memory thus stays at 1.5 KB however far the image is reduced.
//
// The floor is each byte in once and each byte out once. With S = 1 (bilinear) or 2 (bicubic), blocks beside each other
// share a rim: a source byte is read by (1 + 2S / TILE_HEIGHT) * (1 + 2S / TILE_WIDTH) blocks, 1.20 or 1.41 on
// average, the second time from the L2 cache as neighbours run together. Within a block the windows of neighbouring
// columns overlap, so 2S threads of a warp load it, from L1. Bytes that the crop does not show are never read.

typedef unsigned char Byte;
typedef unsigned short Half;  // the bits of an IEEE half

constexpr int TILE_WIDTH = 32;  // a warp in a row: the weights of a tap, and what it writes, are contiguous
constexpr int WARPS = 8;
constexpr int ROWS_PER_THREAD = 2;
constexpr int TILE_HEIGHT = WARPS * ROWS_PER_THREAD;
constexpr int CHUNK = WARPS * ROWS_PER_THREAD;
constexpr int PRECISION = 22;  // bits of a weight behind the point

// One image of the batch. The host has the same layout in packing.SOURCE.
struct Source {
    long long pixels;  // where its pixels [height, width, channels] begin, in bytes
    long long across;  // where the table of its columns begins in the tables
    long long down;    // where the table of its rows begins
    long long width;
};

// For each of n outputs along one axis: the first source pixel, their number, and their weights. The weights stand
// [tap][output], so that a warp, which is at one tap of 32 neighbouring outputs, reads 128 bytes in a row.
struct Axis {
    const int* __restrict__ first;
    const int* __restrict__ taps;
    const int* __restrict__ weights;
    int outputs;

    __device__ Axis(const int* table, int n) : first(table), taps(table + n), weights(table + 2 * n), outputs(n) {}
};

#ifndef CUDA_ON_CPU
// What cuda_fp16.h does, without the header: the source then compiles alone, also at run time. Rounds to nearest even.
__device__ Half half_bits(float value) {
    Half bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ void store(float* place, float value) { *place = value; }
__device__ void store(Half* place, float value) { *place = half_bits(value); }

__device__ Byte rounded(int sum) { return static_cast<Byte>(min(max(sum >> PRECISION, 0), 255)); }

// Half of the last bit that is kept: adding the weighted pixels to it rounds them.
constexpr int ROUNDING = 1 << (PRECISION - 1);

// Column x of the source rows [begin, end), resampled into this thread's rows of the chunk.
template <int CHANNELS>
__device__ void resample_across(const Byte* __restrict__ pixels, long long stride, const Axis& across, int x, int begin,
                                int end, Byte (*chunk)[CHANNELS][TILE_WIDTH]) {
    int sums[ROWS_PER_THREAD][CHANNELS];
    const Byte* rows[ROWS_PER_THREAD];
    const long long left = static_cast<long long>(across.first[x]) * CHANNELS;
#pragma unroll
    for (int i = 0; i < ROWS_PER_THREAD; i++) {
        // Past the end the last row is done again, without a branch in the loop over taps; nobody reads the result.
        const int row = min(begin + static_cast<int>(threadIdx.y) + i * WARPS, end - 1);
        rows[i] = pixels + row * stride + left;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) sums[i][c] = ROUNDING;
    }
    const int taps = across.taps[x];
    for (int tap = 0; tap < taps; tap++) {
        const int weight = across.weights[tap * across.outputs + x];
#pragma unroll
        for (int i = 0; i < ROWS_PER_THREAD; i++) {
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) sums[i][c] += rows[i][tap * CHANNELS + c] * weight;
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS_PER_THREAD; i++) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) chunk[threadIdx.y + i * WARPS][c][threadIdx.x] = rounded(sums[i][c]);
    }
}

// Adds what the source rows [begin, end), which are in the chunk, contribute to row y of the output.
template <int CHANNELS>
__device__ void accumulate_down(const Axis& down, int y, int begin, int end,
                                const Byte (*chunk)[CHANNELS][TILE_WIDTH], int (&sums)[CHANNELS]) {
    const int first = down.first[y];
    const int last = min(end, first + down.taps[y]);
    for (int row = max(begin, first); row < last; row++) {
        const int weight = down.weights[(row - first) * down.outputs + y];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) sums[c] += chunk[row - begin][c][threadIdx.x] * weight;
    }
}

// (pixel / divisor - mean) / std, each operation rounded by itself as numpy does; the intrinsics are never contracted.
// `normalization` is the divisor, then the means and the stds of the output's channels.
template <int CHANNELS>
__device__ float normalized(Byte pixel, const float* __restrict__ normalization, int channel) {
    const float scaled = __fdiv_rn(static_cast<float>(pixel), normalization[0]);
    return __fdiv_rn(__fsub_rn(scaled, normalization[1 + channel]), normalization[1 + CHANNELS + channel]);
}

// The tile (blockIdx.x, blockIdx.y) of image blockIdx.z: the weighted sums of this thread's pixels, ROWS_PER_THREAD of
// one column, which `rounded` makes bytes. Those past the image's edges are garbage.
template <int CHANNELS>
__device__ void resample_tile(const Byte* __restrict__ pixels, const Source source, const int* __restrict__ tables,
                              int height, int width, int (&sums)[ROWS_PER_THREAD][CHANNELS]) {
    __shared__ Byte chunk[CHUNK][CHANNELS][TILE_WIDTH];
    const Axis across(tables + source.across, width);
    const Axis down(tables + source.down, height);
    const int x = blockIdx.x * TILE_WIDTH + threadIdx.x;
    const int top = blockIdx.y * TILE_HEIGHT;
    const int bottom = min(top + TILE_HEIGHT, height) - 1;

#pragma unroll
    for (int i = 0; i < ROWS_PER_THREAD; i++) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) sums[i][c] = ROUNDING;
    }

    // Windows begin and end no earlier than those of the row above: the first and the last bound them all.
    // Threads past the right edge come to the barriers too; their sums are of garbage, and are not written.
    const int end = down.first[bottom] + down.taps[bottom];
    for (int begin = down.first[top]; begin < end; begin += CHUNK) {
        const int chunk_end = min(begin + CHUNK, end);
        if (x < width) {
            resample_across<CHANNELS>(pixels + source.pixels, source.width * CHANNELS, across, x, begin, chunk_end,
                                      chunk);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ROWS_PER_THREAD; i++) {
            const int y = top + threadIdx.y + i * WARPS;
            if (y < height) accumulate_down<CHANNELS>(down, y, begin, chunk_end, chunk, sums[i]);
        }
        __syncthreads();  // all have read the chunk before it is overwritten
    }
}

// Where the value of one of the image's channels belongs in the output, [images, CHANNELS, height, width].
template <int CHANNELS>
__device__ long long place(int channel, int y, int x, int height, int width) {
    const long long plane = static_cast<long long>(blockIdx.z) * CHANNELS + channel;
    return (plane * height + y) * width + x;
}

template <int CHANNELS, typename Out>
__device__ void preprocess_tile(const Byte* __restrict__ pixels, const Source* __restrict__ sources,
                                const int* __restrict__ tables, const float* __restrict__ normalization, int reversed,
                                int height, int width, Out* __restrict__ output) {
    int sums[ROWS_PER_THREAD][CHANNELS];
    resample_tile<CHANNELS>(pixels, sources[blockIdx.z], tables, height, width, sums);
    const int x = blockIdx.x * TILE_WIDTH + threadIdx.x;
    if (x >= width) return;
#pragma unroll
    for (int i = 0; i < ROWS_PER_THREAD; i++) {
        const int y = blockIdx.y * TILE_HEIGHT + threadIdx.y + i * WARPS;
        if (y >= height) break;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            const int channel = reversed ? CHANNELS - 1 - c : c;
            store(output + place<CHANNELS>(channel, y, x, height, width),
                  normalized<CHANNELS>(rounded(sums[i][c]), normalization, channel));
        }
    }
}

// What training does to one image. The host has the same layout in packing.CHANGE.
struct Change {
    float hue, saturation, contrast;  // degrees, a shift, a factor
    int colored;                      // whether these three hold
    int mirrored;
    int left, top, right, bottom;  // of the output, mirrored already: zero there
};

// The colours below repeat trt_cls/data/augmentation.py, operation by operation, each rounded by itself. There the
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

__device__ void change_colors(Byte (&)[1], const Change&) {}  // grey has none

template <int CHANNELS>
__device__ void augment_tile(const Byte* __restrict__ pixels, const Source* __restrict__ sources,
                             const Change* __restrict__ changes, const int* __restrict__ tables,
                             const float* __restrict__ normalization, int reversed, int height, int width,
                             float* __restrict__ output) {
    int sums[ROWS_PER_THREAD][CHANNELS];
    resample_tile<CHANNELS>(pixels, sources[blockIdx.z], tables, height, width, sums);
    const Change& change = changes[blockIdx.z];
    const int source_x = blockIdx.x * TILE_WIDTH + threadIdx.x;
    if (source_x >= width) return;
    const int x = change.mirrored ? width - 1 - source_x : source_x;
#pragma unroll
    for (int i = 0; i < ROWS_PER_THREAD; i++) {
        const int y = blockIdx.y * TILE_HEIGHT + threadIdx.y + i * WARPS;
        if (y >= height) break;
        const bool erased = x >= change.left && x < change.right && y >= change.top && y < change.bottom;
        Byte bytes[CHANNELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) bytes[c] = rounded(sums[i][c]);
        if (change.colored) change_colors(bytes, change);
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            const int channel = reversed ? CHANNELS - 1 - c : c;
            output[place<CHANNELS>(channel, y, x, height, width)] =
                erased ? 0.0f : normalized<CHANNELS>(bytes[c], normalization, channel);
        }
    }
}

// Grid: tiles across, tiles down, images. Block: TILE_WIDTH, WARPS. `reversed`: the output begins with blue.
#define PREPROCESS(NAME, CHANNELS, OUT)                                                                            \
    extern "C" __global__ void __launch_bounds__(TILE_WIDTH * WARPS)                                               \
        NAME(const Byte* __restrict__ pixels, const Source* __restrict__ sources, const int* __restrict__ tables,  \
             const float* __restrict__ normalization, int reversed, int height, int width,                         \
             OUT* __restrict__ output) {                                                                           \
        preprocess_tile<CHANNELS>(pixels, sources, tables, normalization, reversed, height, width, output);        \
    }
PREPROCESS(preprocess_color_float32, 3, float)
PREPROCESS(preprocess_color_float16, 3, Half)
PREPROCESS(preprocess_gray_float32, 1, float)
PREPROCESS(preprocess_gray_float16, 1, Half)

#define AUGMENT(NAME, CHANNELS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(TILE_WIDTH * WARPS)                                                \
        NAME(const Byte* __restrict__ pixels, const Source* __restrict__ sources,                                   \
             const Change* __restrict__ changes, const int* __restrict__ tables,                                    \
             const float* __restrict__ normalization, int reversed, int height, int width,                          \
             float* __restrict__ output) {                                                                          \
        augment_tile<CHANNELS>(pixels, sources, changes, tables, normalization, reversed, height, width, output);   \
    }
AUGMENT(augment_color_float32, 3)
AUGMENT(augment_gray_float32, 1)
