// kernels/preprocess.cu for the CPU, unchanged, behind one C function per kernel.
#include "cuda_on_cpu.h"

#include "../../kernels/preprocess.cu"

// The grid and the block come from the host, as on a GPU, where a block too many would read past the tables.
static void check(const unsigned* grid, const unsigned* block, int height, int width) {
    const unsigned across = (width + TILE_WIDTH - 1) / TILE_WIDTH, down = (height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    if (grid[0] != across || grid[1] != down || block[0] != TILE_WIDTH || block[1] != WARPS || block[2] != 1)
        cuda_on_cpu::die("the host's grid or block is not the kernel's");
}

// A GPU refuses what a CPU takes: it loads these by 8 and by 16 bytes.
static void check_alignment(const Source* sources, const int* tables) {
    if (reinterpret_cast<unsigned long>(sources) % alignof(Source) || reinterpret_cast<unsigned long>(tables) % 16)
        cuda_on_cpu::die("the sources or the tables are not aligned");
}

#define LAUNCH(KERNEL)                                                                                    \
    extern "C" void launch_##KERNEL(const unsigned* grid, const unsigned* block, const Byte* pixels,           \
                                    const Source* sources, const int* tables, const float* normalization,      \
                                    int reversed, int height, int width, float* output) {                        \
        check(grid, block, height, width), check_alignment(sources, tables);                                   \
        cuda_on_cpu::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, [&] {                 \
            KERNEL(pixels, sources, tables, normalization, reversed, height, width, output);                   \
        });                                                                                                    \
    }
LAUNCH(preprocess_color_float32)
LAUNCH(preprocess_gray_float32)

extern "C" unsigned shown_at(unsigned at, int start, unsigned side, bool reflected) {
    return shown(at, start, side, reflected);
}

#define LAUNCH_AUGMENT(KERNEL)                                                                                 \
    extern "C" void launch_##KERNEL(const unsigned* grid, const unsigned* block, const Byte* pixels,           \
                                    const Source* sources, const Change* changes, const int* tables,           \
                                    const float* normalization, int reversed, int height, int width,           \
                                    float* output) {                                                           \
        check(grid, block, height, width), check_alignment(sources, tables);                                   \
        cuda_on_cpu::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, [&] {                 \
            KERNEL(pixels, sources, changes, tables, normalization, reversed, height, width, output);          \
        });                                                                                                    \
    }
LAUNCH_AUGMENT(augment_color_float32)
LAUNCH_AUGMENT(augment_gray_float32)
