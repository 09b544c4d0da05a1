// What the stand-in driver knows: contexts, memory, streams with their queued work, and what has gone wrong.
#pragma once
#include <cuda.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace stand_in {

using Work = std::function<void()>;
using Address = std::uintptr_t;

constexpr std::size_t PAGE = 4096, ALIGNMENT = 256;
constexpr unsigned char POISON = 0xFF;  // memory that nobody has written, or that was freed: NaN as float
constexpr unsigned char FENCE = 0xA5;   // around each allocation
constexpr int DEVICES = 1;

struct Context {
    int device = 0;
    int references = 0;
};

struct Allocation {
    std::size_t size;
    bool host;  // page-locked
    bool live;
    const char* fence_end;
};

// Where a stream was when an event was recorded.
struct Mark {
    struct Stream* stream;
    bool reached = false;
    double time = 0;
};

struct Stream {
    unsigned flags = 0;
    std::deque<Work> queue;
    bool destroyed = false;  // its work goes on
    bool capturing = false, invalid = false;
    std::thread::id capturer;
    std::vector<Work> captured;
};

struct Event {
    std::shared_ptr<Mark> mark;
};

struct Graph {
    std::vector<Work> works;
};

struct Parameter {
    unsigned offset, size;
};

struct Kernel {
    std::string name;
    std::vector<Parameter> parameters;
    unsigned size = 0;
};

struct Module {
    std::map<std::string, Kernel> kernels;
};

// One lock for all: nothing that is queued calls back into Python.
inline std::recursive_mutex lock;
inline bool started = false;
inline int sticky = 0;  // an error that every later call returns, as a driver does once a kernel has gone wrong
inline Context contexts[DEVICES];
inline std::map<Address, Allocation> memory;
inline Stream the_default;  // which no call names
inline std::set<Stream*> streams;
inline std::set<Event*> events;
inline std::set<Module*> modules;
inline std::set<Graph*> graphs, executables;
inline std::map<std::string, long> counts;    // launches, captured, graph_launches, copies, pageable, violations, leaks
inline std::map<std::string, long> failures;  // call → how many more of it succeed; then it fails until that is undone

// The contexts of a thread; who ends with one still current has leaked it.
struct Stack {
    std::vector<Context*> contexts;
    bool pushed_last = false;  // by the last call
    ~Stack() {
        if (!contexts.empty()) {
            std::fprintf(stderr, "driver: a thread ended with %zu contexts current\n", contexts.size());
            counts["leaks"] += static_cast<long>(contexts.size());
        }
    }
};
inline thread_local Stack stack;

inline std::string setting(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

// lazy: queued work runs when somebody waits for it. eager: at once. random: some of it at any call.
inline const std::string order = setting("DRIVER_ORDER", "lazy");
// A driver waits for the whole device before it frees memory; what relies on that is shown by "no".
inline const bool frees_wait = setting("DRIVER_FREES_WAIT", "yes") == "yes";
inline std::mt19937 dice(static_cast<unsigned>(std::atoi(setting("DRIVER_SEED", "1").c_str())));

inline void violated(const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    std::fprintf(stderr, "driver: violation: ");
    std::vfprintf(stderr, format, rest);
    std::fprintf(stderr, "\n");
    va_end(rest);
    counts["violations"]++;
}

inline bool fails(const std::string& call) {
    auto found = failures.find(call);
    return found != failures.end() && found->second-- <= 0;
}

inline double now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---- memory

// The allocation that holds [start, start + size), or null.
inline Allocation* holder(Address start, std::size_t size) {
    auto after = memory.upper_bound(start);
    if (after == memory.begin()) return nullptr;
    auto& [begin, allocation] = *std::prev(after);
    return start + size <= begin + allocation.size ? &allocation : nullptr;
}

// Asked when work runs, not when it is queued.
inline bool usable(Address start, std::size_t size, const char* what) {
    const Allocation* found = holder(start, size);
    if (found && found->live) return true;
    violated("%s: %zu bytes at %#lx %s", what, size, static_cast<unsigned long>(start),
             found ? "were freed before the work ran" : "are not in one allocation");
    sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
    return false;
}

// Ends less than ALIGNMENT bytes before a page that nobody may touch; the bytes around it are looked at when it is freed.
inline void* new_memory(std::size_t size, bool host) {
    const std::size_t pages = (size + PAGE - 1) / PAGE * PAGE + PAGE;
    char* area = static_cast<char*>(
        mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (area == MAP_FAILED) return nullptr;
    char* end = area + pages;
    mprotect(end, PAGE, PROT_NONE);
    const Address start = (reinterpret_cast<Address>(end) - size) / ALIGNMENT * ALIGNMENT;
    char* begin = reinterpret_cast<char*>(start);
    std::memset(begin - ALIGNMENT, FENCE, ALIGNMENT);
    std::memset(begin, POISON, size);
    std::memset(begin + size, FENCE, end - begin - size);
    memory[start] = {size, host, true, end};
    return begin;
}

inline void end_memory(Address start, Allocation& allocation) {
    const char* begin = reinterpret_cast<char*>(start);
    auto torn = [](char byte) { return static_cast<unsigned char>(byte) != FENCE; };
    const char* end = allocation.fence_end;
    if (std::any_of(begin - ALIGNMENT, begin, torn) || std::any_of(begin + allocation.size, end, torn))
        violated("bytes around the %zu at %p were written", allocation.size, static_cast<const void*>(begin));
    std::memset(reinterpret_cast<char*>(start), POISON, allocation.size);
    allocation.live = false;
}

// ---- streams

inline void run_one(Stream* stream) {
    const Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    work();
}

inline void drain(Stream* stream) {
    while (!stream->queue.empty()) run_one(stream);
}

inline void drain_all() {
    drain(&the_default);
    for (Stream* stream : streams) drain(stream);
}

// Of a stream that waits for `mark`: no more of the other stream runs than it has to.
inline void run_until(const Mark& mark) {
    while (!mark.reached && !mark.stream->queue.empty()) run_one(mark.stream);
}

inline void wander() {
    if (order != "random" || dice() % 3) return;
    std::vector<Stream*> busy;
    if (!the_default.queue.empty()) busy.push_back(&the_default);
    for (Stream* stream : streams)
        if (!stream->queue.empty()) busy.push_back(stream);
    if (busy.empty()) return;
    Stream* chosen = busy[dice() % busy.size()];
    for (unsigned many = 1 + dice() % 3; many && !chosen->queue.empty(); many--) run_one(chosen);
}

// Queues `work`; on a stream that captures it is kept for the graph. The default stream waits for all blocking streams,
// and they for it.
inline CUresult add(Stream* stream, Work work) {
    if (!stream) {
        for (Stream* other : streams)
            if (!(other->flags & CU_STREAM_NON_BLOCKING)) {
                if (other->capturing) return other->invalid = true, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
                drain(other);
            }
        stream = &the_default;
    } else if (!streams.count(stream) || stream->destroyed) {
        violated("work for a stream that was destroyed or never made");
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (stream->capturing) return stream->captured.push_back(std::move(work)), CUDA_SUCCESS;
    if (!(stream->flags & CU_STREAM_NON_BLOCKING) && stream != &the_default) drain(&the_default);
    stream->queue.push_back(std::move(work));
    order == "eager" ? drain(stream) : wander();
    return CUDA_SUCCESS;
}

// Whether this thread captures, which forbids `call` and spoils the capture.
inline bool forbidden(const char* call) {
    for (Stream* stream : streams)
        if (stream->capturing && stream->capturer == std::this_thread::get_id()) {
            std::fprintf(stderr, "driver: %s during a capture\n", call);
            return stream->invalid = true;
        }
    return false;
}

// ---- contexts

inline CUresult current() {
    if (!started) return CUDA_ERROR_NOT_INITIALIZED;
    if (stack.contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (!stack.contexts.back()->references) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return static_cast<CUresult>(sticky);
}

inline long living() {
    const auto lives = [](const auto& entry) { return entry.second.live; };
    const long streams_kept = std::count_if(streams.begin(), streams.end(), [](Stream* s) { return !s->destroyed; });
    return std::count_if(memory.begin(), memory.end(), lives) + streams_kept +
           static_cast<long>(events.size() + modules.size() + graphs.size() + executables.size());
}

// Everything that was queued is done, and what nobody gave back is counted and lost.
inline void end_context() {
    drain_all();
    if (const long left = living()) {
        const auto live = [](const auto& entry) { return entry.second.live; };
        std::fprintf(stderr, "driver: the context ended with %ld allocations, %zu streams, %zu events, %zu modules, %zu graphs\n",
                     static_cast<long>(std::count_if(memory.begin(), memory.end(), live)), streams.size(),
                     events.size(), modules.size(), graphs.size() + executables.size());
        counts["leaks"] += left;
    }
    for (auto& [start, allocation] : memory)
        if (allocation.live) end_memory(start, allocation);
    streams.clear(), events.clear(), modules.clear(), graphs.clear(), executables.clear();
}

// A line of JSON for the process, at its end, in the file DRIVER_REPORT.
struct Report {
    pid_t process = getpid();
    ~Report() {
        const std::string path = setting("DRIVER_REPORT", "");
        if (!started || path.empty() || getpid() != process) return;  // a forked process did not start it
        counts["leaks"] += contexts[0].references ? living() + contexts[0].references : 0;
        std::string line = "{";
        for (const char* name : {"launches", "captured", "graph_launches", "copies", "pageable", "leaks", "violations"})
            line += (line.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + std::to_string(counts[name]);
        line += "}\n";
        if (FILE* file = std::fopen(path.c_str(), "a")) std::fputs(line.c_str(), file), std::fclose(file);
    }
};
inline Report report;

}  // namespace stand_in
