// preprocess.cu for CPUs: from one decoded image to the network's input, equal to Pillow to the bit.
//
// The arithmetic is that of the CUDA kernel: weights of 22 bits, a horizontal pass, rounded and clipped to 8 bits, a
// vertical pass over that, for the window of the crop alone. Thirty-two source rows at a time are transposed so that
// the bytes of a column are adjacent: a weight then multiplies 32 neighbors, and the compiler vectorizes the loop on any
// machine. The rows that come out go to a ring that the vertical pass reads, which stays in the first-level cache
// however large the image is. Weights are made here, since each random crop of a training has sizes of its own and numpy
// takes longer for them than this takes for the pixels.
//
// No state is kept between calls: any number of threads may call at once. Needs the C library alone,
// in headers and at run time: no C++ runtime, so that one file runs on every distribution.

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char Byte;

constexpr int PRECISION = 22;  // bits of a weight behind the point
constexpr int ROUNDING = 1 << (PRECISION - 1);
constexpr int ROWS = 32;     // that the horizontal pass resamples together: 16 take twice as long
constexpr int COLUMNS = 64;  // that the vertical pass sums together; rows are padded to it
constexpr int SIDE = 16;     // of the squares in which bytes are turned

// The loader picks the version for the processor that it runs on.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
// Only what is inlined into such a function is compiled for each processor.
#define INLINE inline __attribute__((always_inline))

template <typename T>
static INLINE T lesser(T a, T b) {
    return b < a ? b : a;
}

template <typename T>
static INLINE T greater(T a, T b) {
    return a < b ? b : a;
}

// One axis of a resize, `have` pixels to `resized`, of which `outputs` from `start` on are wanted: pillow.Axis.
struct Axis {
    int have, resized, start, outputs;
};

// Zeros; null where there is not enough memory.
template <typename T>
struct Memory {
    T* const data;
    explicit Memory(size_t count) : data(static_cast<T*>(calloc(count, sizeof(T)))) {}
    ~Memory() { free(data); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    explicit operator bool() const { return data != nullptr; }
    T& operator[](size_t index) const { return data[index]; }
};

// For each output the first source pixel, their number, and their weights, `stride` apart.
struct Table {
    const int stride;
    const Memory<int> first, taps, weights;
    const bool complete;
    Table(const Axis& axis, bool cubic);

    int most_taps(int outputs) const {
        int most = 0;
        for (int i = 0; i < outputs; i++) most = greater(most, taps[i]);
        return most;
    }
};

static double share(double x, bool cubic) {
    x = fabs(x);
    if (!cubic) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
}

// The numbers of pillow.table, by the same operations in the same order, none of them fused.
static bool fill(const Table& made, const Axis& axis, bool cubic) {
    const Memory<double> shares(made.stride);
    if (!made.first || !made.taps || !made.weights || !shares) return false;
    const double scale = static_cast<double>(axis.have) / axis.resized;
    const double stretch = greater(scale, 1.0);
    const double reach = (cubic ? 2.0 : 1.0) * stretch;
    for (int i = 0; i < axis.outputs; i++) {
        const double center = (axis.start + i + 0.5) * scale;
        const int first = greater(static_cast<int>(center - reach + 0.5), 0);
        const int taps = lesser(static_cast<int>(center + reach + 0.5), axis.have) - first;
        double total = 0.0;
        for (int tap = 0; tap < taps; tap++) {
            shares[tap] = share((tap + first - center + 0.5) * (1.0 / stretch), cubic);
            total += shares[tap];
        }
        int* weights = &made.weights[static_cast<size_t>(i) * made.stride];
        for (int tap = 0; tap < taps; tap++) {
            const double weight = shares[tap] / total * (1 << PRECISION);
            weights[tap] = static_cast<int>(weight + copysign(0.5, weight));
        }
        made.first[i] = first;
        made.taps[i] = taps;
    }
    return true;
}

static int widest(const Axis& axis, bool cubic) {
    const double stretch = greater(static_cast<double>(axis.have) / axis.resized, 1.0);
    return static_cast<int>(ceil((cubic ? 2.0 : 1.0) * stretch)) * 2 + 1;
}

Table::Table(const Axis& axis, bool cubic)
    : stride(widest(axis, cubic)),
      first(axis.outputs),
      taps(axis.outputs),
      weights(static_cast<size_t>(axis.outputs) * stride),
      complete(fill(*this, axis, cubic)) {}

static INLINE Byte rounded(int sum) { return static_cast<Byte>(lesser(greater(sum >> PRECISION, 0), 255)); }

// Turns a square of bytes. A byte's place is eight bits, row then column; taking the bytes from both halves by turns
// rotates the places by one bit, so four times exchange row and column.
static INLINE void turn(Byte* square) {
    constexpr int HALF = SIDE * SIDE / 2;
    Byte other[2 * HALF];
    for (int twice = 0; twice < 2; twice++) {
        for (int i = 0; i < HALF; i++) {
            other[2 * i] = square[i];
            other[2 * i + 1] = square[HALF + i];
        }
        for (int i = 0; i < HALF; i++) {
            square[2 * i] = other[i];
            square[2 * i + 1] = other[HALF + i];
        }
    }
}

// `bytes` columns of ROWS rows, from rows `stride` apart to [bytes][ROWS]. Rows past `rows` repeat the last one.
static INLINE void turn_rows(const Byte* source, ptrdiff_t stride, int rows, int bytes, Byte* turned) {
    for (int x = 0; x < bytes; x += SIDE) {
        const int width = lesser(bytes - x, SIDE);
        for (int top = 0; top < ROWS; top += SIDE) {
            Byte square[SIDE * SIDE] = {};
            for (int y = 0; y < SIDE; y++) {
                const Byte* row = source + lesser(top + y, rows - 1) * stride + x;
                if (width == SIDE)
                    for (int i = 0; i < SIDE; i++) square[y * SIDE + i] = row[i];
                else
                    memcpy(square + y * SIDE, row, width);
            }
            turn(square);
            for (int i = 0; i < SIDE; i++)
                for (int y = 0; y < SIDE; y++) turned[(x + i) * ROWS + top + y] = square[i * SIDE + y];
        }
    }
}

// The way back, [bytes][ROWS] to rows `stride` apart; `bytes` is a multiple of SIDE.
static INLINE void turn_columns(const Byte* turned, int bytes, Byte* output, ptrdiff_t stride) {
    for (int x = 0; x < bytes; x += SIDE) {
        for (int top = 0; top < ROWS; top += SIDE) {
            Byte square[SIDE * SIDE];
            for (int i = 0; i < SIDE; i++)
                for (int y = 0; y < SIDE; y++) square[i * SIDE + y] = turned[(x + i) * ROWS + top + y];
            turn(square);
            for (int y = 0; y < SIDE; y++)
                for (int i = 0; i < SIDE; i++) output[(top + y) * stride + x + i] = square[y * SIDE + i];
        }
    }
}

// The rows, [width * CHANNELS][ROWS], resampled to [outputs * CHANNELS][ROWS]; `left` is the first column there.
template <int CHANNELS>
static INLINE void resample_across(const Byte* __restrict__ turned, int left, const Table& across, int outputs,
                                   Byte* __restrict__ output) {
    constexpr int N = CHANNELS * ROWS;
    for (int x = 0; x < outputs; x++) {
        const int* __restrict__ weights = across.weights.data + static_cast<size_t>(x) * across.stride;
        const Byte* __restrict__ pixels = turned + static_cast<ptrdiff_t>(across.first.data[x] - left) * N;
        const int taps = across.taps.data[x];
        int sums[N];
        for (int i = 0; i < N; i++) sums[i] = ROUNDING;
        for (int tap = 0; tap < taps; tap++)
            for (int i = 0; i < N; i++) sums[i] += weights[tap] * pixels[tap * N + i];
        for (int i = 0; i < N; i++) output[x * N + i] = rounded(sums[i]);
    }
}

// One output row of `bytes`, a multiple of COLUMNS, from the rows of the ring.
static INLINE void resample_down(const Byte* __restrict__ ring, int capacity, int bytes, int first, int taps,
                                 const int* __restrict__ weights, Byte* __restrict__ output) {
    for (int x = 0; x < bytes; x += COLUMNS) {
        int sums[COLUMNS];
        for (int i = 0; i < COLUMNS; i++) sums[i] = ROUNDING;
        for (int tap = 0; tap < taps; tap++) {
            const Byte* __restrict__ row = ring + static_cast<size_t>((first + tap) % capacity) * bytes + x;
            for (int i = 0; i < COLUMNS; i++) sums[i] += weights[tap] * row[i];
        }
        for (int i = 0; i < COLUMNS; i++) output[x + i] = rounded(sums[i]);
    }
}

// Where the rows of the output go: as they are, or through a table of 256 values per channel to planes.
struct Output {
    Byte* pixels;
    const float* values;
    bool reversed;
    float* planes;
};

template <int CHANNELS>
static INLINE void write(const Byte* __restrict__ row, int y, int width, int height, const Output& to) {
    if (to.pixels) {
        memcpy(to.pixels + static_cast<ptrdiff_t>(y) * width * CHANNELS, row, static_cast<size_t>(width) * CHANNELS);
        return;
    }
    for (int c = 0; c < CHANNELS; c++) {
        const int channel = to.reversed ? CHANNELS - 1 - c : c;
        const float* __restrict__ values = to.values + 256 * channel;
        float* __restrict__ plane = to.planes + (static_cast<ptrdiff_t>(channel) * height + y) * width;
        for (int x = 0; x < width; x++) plane[x] = values[row[x * CHANNELS + c]];
    }
}

static int padded(int bytes, int unit) { return (bytes + unit - 1) / unit * unit; }

// The tables of an image, what its windows span, and the memory that the passes take. It is made outside of the functions
// that are compiled for each processor: clang 22 leaves out the constructors that only those use.
struct Scratch {
    const Table &across, &down;
    const int width, height, left, columns, end, bytes, capacity;
    const Memory<Byte> turned, resampled, row, ring;

    // Windows begin and end no earlier than those before them: the first and the last bound them all.
    Scratch(const Axis* axes, const Table& across_table, const Table& down_table, int channels)
        : across(across_table),
          down(down_table),
          width(axes[0].outputs),
          height(axes[1].outputs),
          left(across.first[0]),
          columns((across.first[width - 1] + across.taps[width - 1] - left) * channels),
          end(down.first[height - 1] + down.taps[height - 1]),
          bytes(padded(width * channels, COLUMNS)),
          capacity(padded(down.most_taps(height), ROWS) + ROWS),
          turned(static_cast<size_t>(padded(columns, SIDE)) * ROWS),
          resampled(static_cast<size_t>(bytes) * ROWS),
          row(bytes),
          ring(static_cast<size_t>(capacity) * bytes) {}

    bool complete() const { return turned && resampled && row && ring; }
};

template <int CHANNELS>
static INLINE void resample(const Byte* pixels, int side, const Scratch& of, const Output& to) {
    const Table &across = of.across, &down = of.down;
    Byte *const turned = of.turned.data, *const resampled = of.resampled.data;
    Byte *const row = of.row.data, *const ring = of.ring.data;
    const ptrdiff_t stride = static_cast<ptrdiff_t>(side) * CHANNELS;
    int ready = down.first.data[0] / ROWS * ROWS;  // rows before it are in the ring, in the place of their number
    for (int y = 0; y < of.height; y++) {
        const int first = down.first.data[y], taps = down.taps.data[y];
        for (; ready < first + taps; ready += ROWS) {
            const Byte* rows = pixels + ready * stride + static_cast<ptrdiff_t>(of.left) * CHANNELS;
            turn_rows(rows, stride, lesser(of.end - ready, ROWS), of.columns, turned);
            resample_across<CHANNELS>(turned, of.left, across, of.width, resampled);
            turn_columns(resampled, of.bytes, ring + static_cast<size_t>(ready % of.capacity) * of.bytes, of.bytes);
        }
        const int* weights = down.weights.data + static_cast<size_t>(y) * down.stride;
        resample_down(ring, of.capacity, of.bytes, first, taps, weights, row);
        write<CHANNELS>(row, y, of.width, of.height, to);
    }
}

FOR_EACH_PROCESSOR static void resample_color(const Byte* pixels, int side, const Scratch& of, const Output& to) {
    resample<3>(pixels, side, of, to);
}

FOR_EACH_PROCESSOR static void resample_gray(const Byte* pixels, int side, const Scratch& of, const Output& to) {
    resample<1>(pixels, side, of, to);
}

// Both return 0, or 1 where there is not enough memory. `pixels` is [height, width, channels] of 1 or 3 channels.
static int run(const Byte* pixels, int channels, const Axis* axes, int cubic, const Output& to) {
    const Table across(axes[0], cubic), down(axes[1], cubic);
    if (!across.complete || !down.complete) return 1;
    const Scratch scratch(axes, across, down, channels);
    if (!scratch.complete()) return 1;
    (channels == 3 ? resample_color : resample_gray)(pixels, axes[0].have, scratch, to);
    return 0;
}

// The window's pixels, [outputs down, outputs across, channels].
extern "C" int trt_cls_fit(const Byte* pixels, int channels, const Axis* axes, int cubic, Byte* output) {
    return run(pixels, channels, axes, cubic, {output, nullptr, false, nullptr});
}

// The network's input, [channels, outputs down, outputs across]: `values` has 256 for each of its channels. `reversed`:
// it begins with blue.
extern "C" int trt_cls_preprocess(const Byte* pixels, int channels, const Axis* axes, int cubic, const float* values,
                                  int reversed, float* output) {
    return run(pixels, channels, axes, cubic, {nullptr, values, reversed != 0, output});
}
