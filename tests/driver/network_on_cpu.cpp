// The network that stands in for TensorRT's (tests/gpu/tensorrt_over_cuda), for the CPU.
#include "../support/cuda_on_cpu.h"

#include "../gpu/tensorrt_over_cuda/tensorrt/network.cu"

extern "C" void launch_network(const unsigned* grid, const unsigned* block, const float* images, float* answers,
                               int pixels) {
    cuda_on_cpu::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},
                        [&] { network(images, answers, pixels); });
}
