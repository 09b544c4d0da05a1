// kernels/preprocess.cu for the CPU, unchanged, behind one C function per kernel.
#include "cuda_on_cpu.h"

#include "../../kernels/preprocess.cu"

#define LAUNCH(KERNEL, OUT)                                                                                    \
    extern "C" void launch_##KERNEL(const unsigned* grid, const unsigned* block, const Byte* pixels,           \
                                    const Source* sources, const int* tables, const float* normalization,      \
                                    int reversed, int height, int width, OUT* output) {                        \
        cuda_on_cpu::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, [&] {                 \
            KERNEL(pixels, sources, tables, normalization, reversed, height, width, output);                   \
        });                                                                                                    \
    }
LAUNCH(preprocess_color_float32, float)
LAUNCH(preprocess_color_float16, Half)
LAUNCH(preprocess_gray_float32, float)
LAUNCH(preprocess_gray_float16, Half)
