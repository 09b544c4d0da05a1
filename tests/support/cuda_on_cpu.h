// Lets a C++ compiler build a CUDA source for the CPU: what the kernels use of the language, and a launch.
//
// A block runs one thread at a time, each on a stack of its own. __syncthreads() hands over to the next; when all have
// come to it, the first goes on. There are no warps and no races here: those need a GPU and compute-sanitizer.
#pragma once
#define CUDA_ON_CPU

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};

inline dim3 threadIdx, blockIdx;

using std::max;
using std::min;

// With -ffp-contract=off each is one IEEE operation.
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __double2float_rn(double value) { return static_cast<float>(value); }

struct int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};

// The low word of high:low >> shift, for shifts below 32.
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<unsigned long long>(high) << 32) | low) >> (shift & 31));
}

inline int __vimin_s32_relu(int a, int b) { return max(min(a, b), 0); }

// Each nibble of the selector picks one of the eight bytes of high:low.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long both = (static_cast<unsigned long long>(high) << 32) | low;
    unsigned picked = 0;
    for (int i = 0; i < 4; i++) picked |= static_cast<unsigned>((both >> 8 * (selector >> 4 * i & 7)) & 255) << 8 * i;
    return picked;
}

namespace cuda_on_cpu {

constexpr std::size_t STACK = 64 << 10;

struct Thread {
    dim3 index;
    bool done = false;
    ucontext_t context;
    std::jmp_buf place;
    bool entered = false;
    std::vector<char> stack = std::vector<char>(STACK);
};

inline const std::function<void()>* body;
inline Thread* current;
inline ucontext_t home;
inline std::jmp_buf home_place;

#ifdef __SANITIZE_ADDRESS__
// AddressSanitizer follows swapcontext, and no jump from stack to stack.
inline void leave() { swapcontext(&current->context, &home); }
inline void enter() { swapcontext(&home, &current->context); }
#else
// ucontext makes the stacks only: _longjmp changes between them at a sixth of swapcontext's time, which goes through
// the system to restore signals.
inline void leave() {
    if (!_setjmp(current->place)) _longjmp(home_place, 1);
}
inline void enter() {
    if (_setjmp(home_place)) return;
    if (current->entered) _longjmp(current->place, 1);
    current->entered = true;
    setcontext(&current->context);
}
#endif

inline void resume(Thread& thread) {
    current = &thread;
    threadIdx = thread.index;
    enter();
}

inline void run() {
    for (;;) {  // a thread serves one block after the other
        (*body)();
        current->done = true;
        leave();
    }
}

inline std::vector<Thread> threads_of(dim3 block) {
    std::vector<Thread> threads(block.x * block.y * block.z);
    for (unsigned i = 0; i < threads.size(); i++) {
        threads[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        getcontext(&threads[i].context);
        threads[i].context.uc_stack.ss_sp = threads[i].stack.data();
        threads[i].context.uc_stack.ss_size = STACK;
        makecontext(&threads[i].context, run, 0);
    }
    return threads;
}

[[noreturn]] inline void die(const char* message) {
    std::fprintf(stderr, "%s\n", message);
    std::abort();
}

// Runs `kernel`, a call with its arguments, for each thread of each block of the grid.
inline void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    static std::vector<Thread> threads = threads_of(block);
    if (threads.size() != block.x * block.y * block.z || threads.back().index.x != block.x - 1)
        die("kernels of one library must have blocks of one shape");
    body = &kernel;
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
                for (Thread& thread : threads) thread.done = false;
                do {
                    for (Thread& thread : threads) {
                        resume(thread);
                        if (thread.done != threads[0].done) die("not all threads of a block came to the same barrier");
                    }
                } while (!threads[0].done);
            }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::leave(); }
