// Runs the library of kernels/preprocess_host.cpp under an emulator: cases on standard input, tensors on standard output.
// A case is 12 ints (channels, cubic, reversed, 0, the two axes), the pixels, and 256 floats for each channel.

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef int (*Preprocess)(const unsigned char*, int, const int*, int, const float*, int, float*);

static void* take(size_t bytes) {
    void* memory = malloc(bytes);
    if (fread(memory, 1, bytes, stdin) != bytes) exit(2);
    return memory;
}

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    Preprocess preprocess = (Preprocess)dlsym(library, "trt_cls_preprocess");
    int head[12];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        const int channels = head[0], *axes = head + 4;
        unsigned char* pixels = (unsigned char*)take((size_t)axes[0] * axes[4] * channels);
        float* values = (float*)take(sizeof(float) * 256 * channels);
        size_t count = (size_t)axes[3] * axes[7] * channels;
        float* out = (float*)malloc(sizeof(float) * count);
        if (preprocess(pixels, channels, axes, head[1], values, head[2], out)) return 3;
        fwrite(out, sizeof(float), count, stdout);
        free(out), free(values), free(pixels);
    }
}
