// A libcuda.so that runs kernels on the host: what the tests put in the driver's place where there is no GPU.
//
// It keeps the contracts a real driver has and checks more of them: work on a stream runs only when something waits for
// it, so a buffer that is used too early shows; allocations end at a page that cannot be touched and begin with garbage;
// modules are the shared libraries that compiler.cpp makes (see device.h). A stream that is captured runs nothing; a thread
// that waits, copies from or to the host, or takes or frees memory meanwhile breaks the capture. What goes wrong on real
// machines is chosen by DAY0_EMULATOR, a comma-separated list of: no-device, no-init, old-driver, devices=N, memory=BYTES,
// sm=MAJOR.MINOR, launch-fails, no-load (of modules), full=CALL (which finds no memory).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <elf.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
       LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, UNKNOWN = 999 };

std::string setting(const char* key) {
    const char* all = std::getenv("DAY0_EMULATOR");
    std::string rest = all ? all : "";
    while (!rest.empty()) {
        size_t comma = rest.find(',');
        std::string item = rest.substr(0, comma);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
        size_t equals = item.find('=');
        if (item.substr(0, equals) == key) return equals == std::string::npos ? "yes" : item.substr(equals + 1);
    }
    return "";
}

struct Work { uint64_t number; std::function<int()> run; };

// What a capture recorded, in order.
struct Graph { std::vector<std::function<int()>> work; };

struct Stream {
    std::deque<Work> queue;
    uint64_t submitted = 0, done = 0;
    // While it is captured.
    Graph* capture = nullptr;
    std::thread::id captured_by;
    bool broken = false;
};

struct Event { Stream* stream = nullptr; uint64_t number = 0; uint64_t stamp = 0; };

struct Dim3 { unsigned x, y, z; };
struct Module { void* library; };
struct Function { bool (*run)(Dim3, Dim3, unsigned, void**); bool (*sizes)(unsigned*, unsigned); };
struct Allocation { size_t bytes; void* mapped; size_t mapped_bytes; int device; };

std::recursive_mutex lock;
bool initialized = false;
int sticky = SUCCESS;
std::map<uint64_t, Allocation> allocations;
std::map<void*, Stream*> streams;
size_t used[16];
thread_local int current = -1;
Stream default_stream;
uint64_t clock_ticks = 0;

int device_count() {
    if (!setting("no-device").empty()) return 0;
    std::string n = setting("devices");
    return n.empty() ? 1 : atoi(n.c_str());
}

// Whether this call finds no memory.
bool is_full(const char* call) { return setting("full") == call; }

size_t total_bytes() {
    std::string n = setting("memory");
    return n.empty() ? (size_t)1 << 30 : strtoull(n.c_str(), nullptr, 10);
}

// Runs the work of a stream up to a number.
int drain(Stream& stream, uint64_t until) {
    while (!stream.queue.empty() && stream.queue.front().number <= until) {
        Work work = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (sticky == SUCCESS) {
            int code = work.run();
            if (code != SUCCESS) sticky = code;
        }
        stream.done = work.number;
        clock_ticks += 1000;
    }
    return sticky;
}

void submit(Stream& stream, std::function<int()> run) {
    if (stream.capture) {
        stream.capture->work.push_back(std::move(run));
    } else {
        stream.queue.push_back({++stream.submitted, std::move(run)});
    }
}

// Breaks the captures of the calling thread, which does what none can record. Whether there are any.
bool breaks_capture() {
    bool any = false;
    for (auto& each : streams) {
        if (each.second->capture && each.second->captured_by == std::this_thread::get_id()) any = each.second->broken = true;
    }
    return any;
}

Stream* stream_of(void* handle) {
    if (!handle) return &default_stream;
    auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

int drain_all() {
    drain(default_stream, UINT64_MAX);
    for (auto& each : streams) drain(*each.second, UINT64_MAX);
    return sticky;
}

// Whether a range lies within one allocation of the device.
bool on_device(uint64_t at, size_t bytes) {
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return false;
    auto& found = *--next;
    return at + bytes <= found.first + found.second.bytes;
}

using Guard = std::lock_guard<std::recursive_mutex>;

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) {
    Guard guard(lock);
    if (!setting("no-init").empty()) return UNKNOWN;
    if (device_count() == 0) return NO_DEVICE;
    initialized = true;
    return SUCCESS;
}

API cuDriverGetVersion(int* version) {
    *version = setting("old-driver").empty() ? 13000 : 12020;
    return SUCCESS;
}

API cuDeviceGetCount(int* count) {
    if (!initialized) return NOT_INITIALIZED;
    *count = device_count();
    return SUCCESS;
}

API cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= device_count()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API cuDeviceGetName(char* name, int length, int) {
    snprintf(name, length, "emulated device");
    return SUCCESS;
}

API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = total_bytes();
    return SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, int) {
    std::string sm = setting("sm");
    if (sm.empty()) sm = "9.0";
    switch (attribute) {
        case 16: *value = 4; break;                                  // multiprocessors
        case 75: *value = atoi(sm.c_str()); break;                   // compute capability, major
        case 76: *value = atoi(sm.c_str() + sm.find('.') + 1); break;  // and minor
        case 97: *value = 227 << 10; break;                          // shared memory of a block, by choice
        case 38: *value = 50 << 20; break;                           // second-level cache
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** context, int device) {
    if (device < 0 || device >= device_count()) return INVALID_DEVICE;
    *context = (void*)(intptr_t)(device + 1);
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

API cuCtxSetCurrent(void* context) {
    current = (int)(intptr_t)context - 1;
    return SUCCESS;
}

API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    Guard guard(lock);
    if (current < 0) return INVALID_CONTEXT;
    *total = total_bytes();
    *free_bytes = *total - used[current];
    return SUCCESS;
}

API cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    Guard guard(lock);
    if (current < 0) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (breaks_capture()) return CAPTURE_UNSUPPORTED;
    if (used[current] + bytes > total_bytes()) return OUT_OF_MEMORY;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), data = (bytes + page - 1) / page * page;
    char* mapped = (char*)mmap(nullptr, data + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(mapped + data, page, PROT_NONE);
    // As near to the untouchable page as an alignment of 256 bytes, which real allocations have, lets it be where the size
    // is a multiple; else 16.
    size_t alignment = bytes % 256 == 0 ? 256 : 16;
    char* start = mapped + (data - bytes) / alignment * alignment;
    memset(start, 0xcd, bytes);
    *at = (uint64_t)start;
    allocations[*at] = {bytes, mapped, data + page, current};
    used[current] += bytes;
    return SUCCESS;
}

API cuMemFree_v2(uint64_t at) {
    Guard guard(lock);
    auto found = allocations.find(at);
    if (found == allocations.end()) return INVALID_VALUE;
    if (breaks_capture()) return CAPTURE_UNSUPPORTED;
    drain_all();
    used[found->second.device] -= found->second.bytes;
    munmap(found->second.mapped, found->second.mapped_bytes);
    allocations.erase(found);
    return SUCCESS;
}

API cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    Guard guard(lock);
    if (breaks_capture()) return CAPTURE_UNSUPPORTED;
    if (is_full("cuMemHostAlloc")) return OUT_OF_MEMORY;
    return posix_memalign(at, 4096, bytes ? bytes : 1) == 0 ? SUCCESS : OUT_OF_MEMORY;
}

API cuMemFreeHost(void* at) {
    Guard guard(lock);
    if (breaks_capture()) return CAPTURE_UNSUPPORTED;
    drain_all();
    free(at);
    return SUCCESS;
}

static int copy(uint64_t device, size_t bytes, void* stream, bool of_host, std::function<void()> run) {
    Guard guard(lock);
    Stream* on = stream_of(stream);
    if (current < 0) return INVALID_CONTEXT;
    if (!on || !on_device(device, bytes)) return INVALID_VALUE;
    if (of_host && on->capture && breaks_capture()) return CAPTURE_UNSUPPORTED;
    submit(*on, [run = std::move(run)] {
        run();
        return SUCCESS;
    });
    return SUCCESS;
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    return copy(to, bytes, stream, true, [=] { memcpy((void*)to, from, bytes); });
}

API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    return copy(from, bytes, stream, true, [=] { memcpy(to, (void*)from, bytes); });
}

API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    {
        Guard guard(lock);
        if (!on_device(from, bytes)) return INVALID_VALUE;
    }
    return copy(to, bytes, stream, false, [=] { memmove((void*)to, (void*)from, bytes); });
}

API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    return copy(to, bytes, stream, false, [=] { memset((void*)to, value, bytes); });
}

API cuStreamCreate(void** stream, unsigned) {
    Guard guard(lock);
    if (current < 0) return INVALID_CONTEXT;
    Stream* made = new Stream;
    streams[made] = made;
    *stream = made;
    return SUCCESS;
}

API cuStreamDestroy_v2(void* stream) {
    Guard guard(lock);
    Stream* found = stream_of(stream);
    if (!stream || !found) return INVALID_HANDLE;
    drain(*found, UINT64_MAX);
    // What is left of it is kept for events that were recorded there, which stay valid.
    streams.erase(stream);
    return SUCCESS;
}

API cuStreamSynchronize(void* stream) {
    Guard guard(lock);
    Stream* found = stream_of(stream);
    if (!found) return INVALID_HANDLE;
    if (found->capture && breaks_capture()) return CAPTURE_UNSUPPORTED;
    return drain(*found, UINT64_MAX);
}

API cuStreamBeginCapture_v2(void* stream, unsigned) {
    Guard guard(lock);
    Stream* found = stream_of(stream);
    if (!stream || !found) return INVALID_HANDLE;
    if (found->capture) return INVALID_VALUE;
    found->capture = new Graph;
    found->captured_by = std::this_thread::get_id();
    found->broken = false;
    return SUCCESS;
}

API cuStreamEndCapture(void* stream, void** graph) {
    Guard guard(lock);
    Stream* found = stream_of(stream);
    if (!found || !found->capture) return INVALID_VALUE;
    Graph* recorded = found->capture;
    found->capture = nullptr;
    if (found->broken) {
        delete recorded;
        *graph = nullptr;
        return CAPTURE_INVALIDATED;
    }
    *graph = recorded;
    return SUCCESS;
}

API cuGraphDestroy(void* graph) {
    delete (Graph*)graph;
    return SUCCESS;
}

API cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long) {
    *made = new Graph(*(Graph*)graph);
    return SUCCESS;
}

API cuGraphExecDestroy(void* graph) {
    Guard guard(lock);
    drain_all();
    delete (Graph*)graph;
    return SUCCESS;
}

API cuGraphLaunch(void* graph, void* stream) {
    Guard guard(lock);
    Stream* on = stream_of(stream);
    if (current < 0) return INVALID_CONTEXT;
    if (!on) return INVALID_HANDLE;
    submit(*on, [graph] {
        for (auto& run : ((Graph*)graph)->work) {
            int code = run();
            if (code != SUCCESS) return code;
        }
        return (int)SUCCESS;
    });
    return SUCCESS;
}

API cuEventCreate(void** event, unsigned) {
    *event = new Event;
    return SUCCESS;
}

API cuEventDestroy_v2(void* event) {
    delete (Event*)event;
    return SUCCESS;
}

API cuEventRecord(void* event, void* stream) {
    Guard guard(lock);
    Stream* found = stream_of(stream);
    if (!found) return INVALID_HANDLE;
    if (found->capture && breaks_capture()) return CAPTURE_UNSUPPORTED;
    Event* recorded = (Event*)event;
    submit(*found, [recorded] {
        recorded->stamp = ++clock_ticks;
        return SUCCESS;
    });
    recorded->stream = found;
    recorded->number = found->submitted;
    return SUCCESS;
}

API cuEventSynchronize(void* event) {
    Guard guard(lock);
    Event* recorded = (Event*)event;
    return recorded->stream ? drain(*recorded->stream, recorded->number) : SUCCESS;
}

API cuStreamWaitEvent(void* stream, void* event, unsigned) {
    Guard guard(lock);
    Stream* found = stream_of(stream);
    Event* recorded = (Event*)event;
    if (!found) return INVALID_HANDLE;
    if (!recorded->stream) return SUCCESS;
    Stream* other = recorded->stream;
    uint64_t number = recorded->number;
    submit(*found, [other, number] { return drain(*other, number); });
    return SUCCESS;
}

API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    *milliseconds = (float)(((Event*)end)->stamp - ((Event*)start)->stamp) * 1e-6f;
    return SUCCESS;
}

API cuModuleLoadData(void** module, const void* image) {
    const Elf64_Ehdr* header = (const Elf64_Ehdr*)image;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || !setting("no-load").empty()) return INVALID_IMAGE;
    if (is_full("cuModuleLoadData")) return OUT_OF_MEMORY;
    size_t bytes = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    // The loader knows libraries by their paths: each needs one of its own.
    char path[] = "/tmp/day0-module-XXXXXX";
    int file = mkstemp(path);
    if (file < 0) return UNKNOWN;
    bool written = write(file, image, bytes) == (ssize_t)bytes;
    close(file);
    void* library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) fprintf(stderr, "emulated module: %s\n", dlerror());
    unlink(path);
    if (!library) return INVALID_IMAGE;
    *module = new Module{library};
    return SUCCESS;
}

API cuModuleUnload(void* module) {
    Guard guard(lock);
    drain_all();
    dlclose(((Module*)module)->library);
    delete (Module*)module;
    return SUCCESS;
}

API cuModuleGetFunction(void** function, void* module, const char* name) {
    using Find = bool (*)(const char*, void**, void**);
    Find find = (Find)dlsym(((Module*)module)->library, "emulator_find");
    void *run = nullptr, *sizes = nullptr;
    if (!find || !find(name, &run, &sizes)) return NOT_FOUND;
    // Functions live as long as the process, as their number is small.
    *function = new Function{(bool (*)(Dim3, Dim3, unsigned, void**))run, (bool (*)(unsigned*, unsigned))sizes};
    return SUCCESS;
}

API cuFuncSetAttribute(void*, int, int) { return SUCCESS; }

API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** params, void**) {
    Guard guard(lock);
    Stream* on = stream_of(stream);
    Function* kernel = (Function*)function;
    if (current < 0) return INVALID_CONTEXT;
    if (!on || !gx || !gy || !gz || !bx || (uint64_t)bx * by * bz > 1024 || gy > 65535 || gz > 65535) return INVALID_VALUE;
    if (!setting("launch-fails").empty()) return LAUNCH_FAILED;
    if (is_full("cuLaunchKernel")) return OUT_OF_MEMORY;
    // Arguments are copied now, as a driver does.
    unsigned sizes[64] = {};
    if (!kernel->sizes(sizes, 64)) return INVALID_VALUE;
    std::deque<std::string> copies;
    for (int i = 0; i < 64 && sizes[i]; i++) copies.emplace_back((const char*)params[i], sizes[i]);
    submit(*on, [=]() mutable {
        void* pointers[64];
        int count = 0;
        for (auto& each : copies) pointers[count++] = each.data();
        return kernel->run({gx, gy, gz}, {bx, by, bz}, shared, pointers) ? SUCCESS : LAUNCH_FAILED;
    });
    return SUCCESS;
}

// For cublaslt.cpp: queues work that touches these ranges, pairs of address and bytes. It may run any number of times
// before its state goes, which is the caller's where the work is refused.
API emulator_submit(void* stream, const uint64_t* ranges, int count, void (*run)(void*), void (*destroy)(void*), void* state) {
    Guard guard(lock);
    Stream* on = stream_of(stream);
    if (current < 0) return INVALID_CONTEXT;
    if (!on) return INVALID_HANDLE;
    for (int i = 0; i < count; i++) {
        if (!on_device(ranges[2 * i], ranges[2 * i + 1])) return INVALID_VALUE;
    }
    std::shared_ptr<void> held(state, destroy);
    submit(*on, [run, held] {
        run(held.get());
        return SUCCESS;
    });
    return SUCCESS;
}
