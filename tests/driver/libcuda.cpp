// libcuda.so.1 played by the CPU, for the real pycuda and for trt_cls's own calls of the driver.
//
// Checks what a driver checks and more: a current context, live and large enough memory when the work runs, page-locked
// host memory, bytes around each allocation, the rules of a capture. Kernels are those of the cubins that are loaded,
// with the sizes of their arguments; they run through the libraries DRIVER_KERNELS, as launch_NAME(grid, block, …).
// Settings and counts: state.h. It shows nothing of speed, warps and races within a kernel.
#include <dlfcn.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "cubin.h"
#include "state.h"

using namespace stand_in;

#define API extern "C" __attribute__((visibility("default"))) CUresult CUDAAPI
#define BEGIN                                           \
    const std::lock_guard<std::recursive_mutex> held(lock); \
    stack.pushed_last = false;                          \
    if (fails(__func__)) return CUDA_ERROR_UNKNOWN
#define IN_CONTEXT \
    BEGIN;         \
    if (const CUresult error = current()) return error

static Stream* of(CUstream stream) { return reinterpret_cast<Stream*>(stream); }
static Event* of(CUevent event) { return reinterpret_cast<Event*>(event); }
static Graph* of(CUgraph graph) { return reinterpret_cast<Graph*>(graph); }
static Graph* of(CUgraphExec executable) { return reinterpret_cast<Graph*>(executable); }
static Module* of(CUmodule module) { return reinterpret_cast<Module*>(module); }

// ---- for tests

extern "C" __attribute__((visibility("default"))) long stand_in_count(const char* name) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    const std::string asked = name;
    if (asked == "living") return living();
    if (asked == "current") return static_cast<long>(stack.contexts.size());
    if (asked == "queued")  // streams with work
        return std::count_if(streams.begin(), streams.end(), [](Stream* stream) { return !stream->queue.empty(); });
    if (asked == "blocking")
        return std::count_if(streams.begin(), streams.end(), [](Stream* s) { return s->flags != CU_STREAM_NON_BLOCKING; });
    return counts[asked];
}
// Of the calls `name` ("allocation": of memory of either kind) `after` more succeed, and then none; -1: all do.
extern "C" __attribute__((visibility("default"))) void stand_in_fail(const char* name, long after) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    failures.erase(name);
    if (after >= 0) failures[name] = after;
}

// ---- devices and contexts

API cuInit(unsigned) { BEGIN; return started = true, CUDA_SUCCESS; }
API cuDriverGetVersion(int* version) { BEGIN; return *version = CUDA_VERSION, CUDA_SUCCESS; }
API cuDeviceGetCount(int* count) { BEGIN; return *count = DEVICES, CUDA_SUCCESS; }
API cuDeviceGet(CUdevice* device, int number) {
    BEGIN;
    if (!started) return CUDA_ERROR_NOT_INITIALIZED;
    if (number < 0 || number >= DEVICES) return CUDA_ERROR_INVALID_DEVICE;
    return *device = number, CUDA_SUCCESS;
}
API cuDeviceGetName(char* name, int length, CUdevice) {
    BEGIN;
    std::snprintf(name, length, "CPU in the role of a GPU");
    return CUDA_SUCCESS;
}
API cuDeviceTotalMem(size_t* bytes, CUdevice) { BEGIN; return *bytes = 8ull << 30, CUDA_SUCCESS; }
API cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    BEGIN;
    const std::string capability = setting("DRIVER_CAPABILITY", "9.0");
    *value = 0;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = std::stoi(capability);
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        *value = std::stoi(capability.substr(capability.find('.') + 1));
    return CUDA_SUCCESS;
}
API cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
    cuDeviceGetAttribute(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    return cuDeviceGetAttribute(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
}
API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    BEGIN;
    contexts[device].references++;
    *context = reinterpret_cast<CUcontext>(&contexts[device]);
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRelease(CUdevice device) {
    const bool pushed_last = stack.pushed_last;
    BEGIN;
    // pycuda makes a context current, releases it, and takes it for gone then.
    if (pushed_last) stack.contexts.pop_back();
    if (!contexts[device].references) return violated("a context that nobody holds is released"), CUDA_ERROR_INVALID_CONTEXT;
    if (--contexts[device].references == 0) end_context();
    return CUDA_SUCCESS;
}
API cuCtxPushCurrent(CUcontext context) {
    BEGIN;
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    stack.contexts.push_back(reinterpret_cast<Context*>(context));
    stack.pushed_last = true;
    if (!stack.contexts.back()->references) violated("a released context is made current");
    return CUDA_SUCCESS;
}
API cuCtxPopCurrent(CUcontext* context) {
    BEGIN;
    if (stack.contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = reinterpret_cast<CUcontext>(stack.contexts.back());
    return stack.contexts.pop_back(), CUDA_SUCCESS;
}
API cuCtxGetCurrent(CUcontext* context) {
    BEGIN;
    *context = stack.contexts.empty() ? nullptr : reinterpret_cast<CUcontext>(stack.contexts.back());
    return CUDA_SUCCESS;
}
API cuCtxSetCurrent(CUcontext context) {
    BEGIN;
    if (!stack.contexts.empty()) stack.contexts.pop_back();
    if (context) stack.contexts.push_back(reinterpret_cast<Context*>(context));
    return CUDA_SUCCESS;
}
API cuCtxGetDevice(CUdevice* device) { IN_CONTEXT; return *device = stack.contexts.back()->device, CUDA_SUCCESS; }
API cuCtxDetach(CUcontext) { BEGIN; return CUDA_ERROR_INVALID_CONTEXT; }  // as a driver answers for a primary context
API cuCtxSynchronize() {
    IN_CONTEXT;
    if (forbidden(__func__)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    drain_all();
    return current();
}

// ---- memory

static CUresult allocate(void** start, size_t size, bool host) {
    if (forbidden("an allocation")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (fails("allocation")) return counts["refused"]++, CUDA_ERROR_OUT_OF_MEMORY;
    if (!(*start = new_memory(size, host))) return CUDA_ERROR_OUT_OF_MEMORY;
    wander();
    return CUDA_SUCCESS;
}
static CUresult release(Address start, bool host) {
    if (forbidden("freeing memory")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    const auto found = memory.find(start);
    if (found == memory.end() || !found->second.live || found->second.host != host)
        return violated("%#lx is freed, which is no allocation", static_cast<unsigned long>(start)), CUDA_ERROR_INVALID_VALUE;
    if (frees_wait) drain_all();
    end_memory(start, found->second);
    return CUDA_SUCCESS;
}
API cuMemAlloc(CUdeviceptr* start, size_t size) { IN_CONTEXT; return allocate(reinterpret_cast<void**>(start), size, false); }
API cuMemHostAlloc(void** start, size_t size, unsigned) { IN_CONTEXT; return allocate(start, size, true); }
API cuMemAllocHost(void** start, size_t size) { IN_CONTEXT; return allocate(start, size, true); }
API cuMemFree(CUdeviceptr start) { IN_CONTEXT; return release(start, false); }
API cuMemFreeHost(void* start) { IN_CONTEXT; return release(reinterpret_cast<Address>(start), true); }
API cuMemGetInfo(size_t* free, size_t* total) { IN_CONTEXT; return *free = 4ull << 30, *total = 8ull << 30, CUDA_SUCCESS; }

struct Side {
    Address start;
    bool host;
};

static CUresult copy(Side to, Side from, size_t size, CUstream stream, bool queued, const char* name) {
    bool pageable = false;
    for (const Side& side : {to, from}) {
        const Allocation* found = holder(side.start, size);
        const bool known = found && found->live && found->host == side.host;
        if (!known && !side.host)
            return violated("%s: %zu bytes at %#lx are no live memory of the device", name, size,
                            static_cast<unsigned long>(side.start)), CUDA_ERROR_INVALID_VALUE;
        pageable |= !known;
    }
    counts["copies"]++;
    if (queued && pageable) counts["pageable"]++;  // a driver copies at once then
    const CUresult error = add(of(stream), [=] {
        bool sound = true;
        for (const Side& side : {to, from})
            if (!side.host || !pageable) sound = sound && usable(side.start, size, name);
        if (sound) std::memmove(reinterpret_cast<void*>(to.start), reinterpret_cast<void*>(from.start), size);
    });
    if (!error && (!queued || pageable)) drain(stream ? of(stream) : &the_default);
    return error ? error : current();
}
#define HOST(POINTER) Side{reinterpret_cast<Address>(POINTER), true}
#define DEVICE(POINTER) Side{static_cast<Address>(POINTER), false}
API cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t size) {
    IN_CONTEXT;
    return copy(DEVICE(to), HOST(from), size, nullptr, false, __func__);
}
API cuMemcpyDtoH(void* to, CUdeviceptr from, size_t size) {
    IN_CONTEXT;
    return copy(HOST(to), DEVICE(from), size, nullptr, false, __func__);
}
API cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t size) {
    IN_CONTEXT;
    return copy(DEVICE(to), DEVICE(from), size, nullptr, false, __func__);
}
API cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
    IN_CONTEXT;
    return copy(DEVICE(to), HOST(from), size, stream, true, __func__);
}
API cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t size, CUstream stream) {
    IN_CONTEXT;
    return copy(HOST(to), DEVICE(from), size, stream, true, __func__);
}
API cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    IN_CONTEXT;
    return copy(DEVICE(to), DEVICE(from), size, stream, true, __func__);
}
static CUresult fill(CUdeviceptr to, unsigned char value, size_t size, CUstream stream, const char* name) {
    return add(of(stream), [=] {
        if (usable(to, size, name)) std::memset(reinterpret_cast<void*>(to), value, size);
    });
}
API cuMemsetD8(CUdeviceptr to, unsigned char value, size_t size) {
    IN_CONTEXT;
    return fill(to, value, size, nullptr, __func__);
}
API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream stream) {
    IN_CONTEXT;
    return fill(to, value, size, stream, __func__);
}

// ---- streams and events

API cuStreamCreate(CUstream* stream, unsigned flags) {
    IN_CONTEXT;
    auto* made = new Stream;
    made->flags = flags;
    streams.insert(made);
    return *stream = reinterpret_cast<CUstream>(made), CUDA_SUCCESS;
}
API cuStreamDestroy(CUstream stream) {
    IN_CONTEXT;
    if (!streams.count(of(stream)) || of(stream)->destroyed)
        return violated("a stream is destroyed twice"), CUDA_ERROR_INVALID_HANDLE;
    of(stream)->destroyed = true;
    if (of(stream)->queue.empty()) streams.erase(of(stream));
    return CUDA_SUCCESS;
}
API cuStreamSynchronize(CUstream stream) {
    IN_CONTEXT;
    if (!stream) return drain_all(), current();
    if (!streams.count(of(stream)) || of(stream)->destroyed)
        return violated("a destroyed stream is waited for"), CUDA_ERROR_INVALID_HANDLE;
    if (of(stream)->capturing || forbidden(__func__))
        return of(stream)->invalid = true, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    drain(of(stream));
    return current();
}
API cuStreamQuery(CUstream stream) {
    IN_CONTEXT;
    return stream && !of(stream)->queue.empty() ? CUDA_ERROR_NOT_READY : current();
}
API cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    IN_CONTEXT;
    const auto mark = of(event)->mark;  // of the record before this call: a later one is not waited for
    return mark ? add(of(stream), [mark] { run_until(*mark); }) : CUDA_SUCCESS;
}
API cuEventCreate(CUevent* event, unsigned) {
    IN_CONTEXT;
    auto* made = new Event;
    events.insert(made);
    return *event = reinterpret_cast<CUevent>(made), CUDA_SUCCESS;
}
API cuEventDestroy(CUevent event) { IN_CONTEXT; return events.erase(of(event)), CUDA_SUCCESS; }
API cuEventRecord(CUevent event, CUstream stream) {
    IN_CONTEXT;
    const auto mark = of(event)->mark = std::make_shared<Mark>(Mark{stream ? of(stream) : &the_default});
    return add(of(stream), [mark] { mark->reached = true, mark->time = now(); });
}
API cuEventSynchronize(CUevent event) {
    IN_CONTEXT;
    if (of(event)->mark) run_until(*of(event)->mark);
    return current();
}
API cuEventQuery(CUevent event) {
    IN_CONTEXT;
    return of(event)->mark && !of(event)->mark->reached ? CUDA_ERROR_NOT_READY : current();
}
API cuEventElapsedTime(float* milliseconds, CUevent begin, CUevent end) {
    IN_CONTEXT;
    const auto &first = of(begin)->mark, &last = of(end)->mark;
    if (!first || !last) return CUDA_ERROR_INVALID_HANDLE;
    if (!first->reached || !last->reached) return CUDA_ERROR_NOT_READY;
    return *milliseconds = static_cast<float>(last->time - first->time), CUDA_SUCCESS;
}

// ---- graphs

API cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
    IN_CONTEXT;
    if (!streams.count(of(stream))) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (of(stream)->capturing) return CUDA_ERROR_ILLEGAL_STATE;
    of(stream)->capturing = true, of(stream)->invalid = false;
    of(stream)->capturer = std::this_thread::get_id();
    return of(stream)->captured.clear(), CUDA_SUCCESS;
}
API cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    *graph = nullptr;
    if (!of(stream)->capturing) return CUDA_ERROR_ILLEGAL_STATE;
    if (of(stream)->capturer != std::this_thread::get_id()) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    of(stream)->capturing = false;
    if (of(stream)->invalid || fails(__func__)) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    auto* made = new Graph{std::move(of(stream)->captured)};
    graphs.insert(made);
    counts["captured"]++;
    return *graph = reinterpret_cast<CUgraph>(made), CUDA_SUCCESS;
}
API cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
    IN_CONTEXT;
    if (!graphs.count(of(graph))) return CUDA_ERROR_INVALID_VALUE;
    auto* made = new Graph(*of(graph));
    executables.insert(made);
    return *executable = reinterpret_cast<CUgraphExec>(made), CUDA_SUCCESS;
}
API cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    IN_CONTEXT;
    Graph* graph = of(executable);
    if (!executables.count(graph)) return violated("a destroyed graph is launched"), CUDA_ERROR_INVALID_VALUE;
    counts["graph_launches"]++;
    for (const Work& work : graph->works) {
        const auto checked = [work, graph] {
            if (!executables.count(graph)) violated("a graph was destroyed before its work ran");
            work();
        };
        if (const CUresult error = add(of(stream), checked)) return error;
    }
    return CUDA_SUCCESS;
}
API cuGraphDestroy(CUgraph graph) { BEGIN; return graphs.erase(of(graph)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
API cuGraphExecDestroy(CUgraphExec executable) {
    BEGIN;
    return executables.erase(of(executable)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- kernels

API cuModuleLoad(CUmodule* module, const char* path) {
    IN_CONTEXT;
    std::ifstream file(path, std::ios::binary);
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    auto made = module_of(std::string(std::istreambuf_iterator<char>(file), {}));
    if (!made) return CUDA_ERROR_INVALID_IMAGE;
    modules.insert(made.get());
    return *module = reinterpret_cast<CUmodule>(made.release()), CUDA_SUCCESS;
}
API cuModuleUnload(CUmodule module) {
    IN_CONTEXT;
    if (!modules.erase(of(module))) return violated("an unknown module is unloaded"), CUDA_ERROR_INVALID_HANDLE;
    return CUDA_SUCCESS;
}
API cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    IN_CONTEXT;
    const auto found = of(module)->kernels.find(name);
    if (found == of(module)->kernels.end()) return CUDA_ERROR_NOT_FOUND;
    return *function = reinterpret_cast<CUfunction>(&found->second), CUDA_SUCCESS;
}
API cuFuncSetBlockShape(CUfunction, int, int, int) { IN_CONTEXT; return CUDA_SUCCESS; }
API cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) { IN_CONTEXT; return *value = 0, CUDA_SUCCESS; }

// launch_NAME of the libraries that the tests made of the kernels' sources. All arguments are whole numbers and
// addresses: in C's calling convention a function may be given more of them than it takes.
using Entry = void (*)(const unsigned*, const unsigned*, Address, Address, Address, Address, Address, Address, Address,
                       Address, Address, Address);
constexpr std::size_t MOST_ARGUMENTS = 10;

static Entry entry_of(const std::string& kernel) {
    std::istringstream libraries(setting("DRIVER_KERNELS", ""));
    for (std::string path; std::getline(libraries, path, ':');)
        if (void* library = dlopen(path.c_str(), RTLD_NOW))
            if (void* entry = dlsym(library, ("launch_" + kernel).c_str())) return reinterpret_cast<Entry>(entry);
    return nullptr;
}

// The arguments in one buffer, however the caller gave them.
static std::string arguments_of(const Kernel& kernel, void** pointers, void** extra) {
    std::string buffer(kernel.size, '\0');
    if (pointers) {
        for (std::size_t i = 0; i < kernel.parameters.size(); i++)
            std::memcpy(&buffer[kernel.parameters[i].offset], pointers[i], kernel.parameters[i].size);
        return buffer;
    }
    for (int i = 0; extra && extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
        if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE) buffer.resize(*static_cast<size_t*>(extra[i + 1]));
    }
    for (int i = 0; extra && extra[i] != CU_LAUNCH_PARAM_END; i += 2)
        if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER) std::memcpy(&buffer[0], extra[i + 1], buffer.size());
    return buffer;
}

API cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned, CUstream stream, void** pointers, void** extra) {
    IN_CONTEXT;
    const Kernel& kernel = *reinterpret_cast<Kernel*>(function);
    if (!grid_x || !grid_y || !grid_z || grid_y > 65535 || grid_z > 65535 || block_x * block_y * block_z > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    const std::string buffer = arguments_of(kernel, pointers, extra);
    const Entry entry = entry_of(kernel.name);
    if (!entry || buffer.size() != kernel.size || kernel.parameters.size() > MOST_ARGUMENTS)
        return violated("%s: %zu bytes of arguments, the cubin takes %u; launch_%s is %s", kernel.name.c_str(),
                        buffer.size(), kernel.size, kernel.name.c_str(), entry ? "there" : "not in DRIVER_KERNELS"),
               CUDA_ERROR_INVALID_VALUE;
    Address values[MOST_ARGUMENTS] = {};
    for (std::size_t i = 0; i < kernel.parameters.size(); i++)
        std::memcpy(&values[i], &buffer[kernel.parameters[i].offset], kernel.parameters[i].size);
    counts["launches"]++;
    return add(of(stream), [=, name = kernel.name, parameters = kernel.parameters] {
        for (std::size_t i = 0; i < parameters.size(); i++)
            if (parameters[i].size == sizeof(Address) && !usable(values[i], 1, name.c_str())) return;
        const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
        const Address* v = values;
        entry(grid, block, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9]);
    });
}

API cuGetErrorName(CUresult, const char** text) { return *text = "CUDA_ERROR", CUDA_SUCCESS; }
API cuGetErrorString(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error of the stand-in driver";
    return CUDA_SUCCESS;
}
// NVRTC and the CUDA runtime ask for more than there is.
API cuGetExportTable(const void** table, const CUuuid*) { return *table = nullptr, CUDA_ERROR_NOT_FOUND; }
