/* A stand-in for CUDA's driver library, libcuda.so.1: one GPU whose memory is the host's and which runs no kernels.
 *
 * It is there for the order of calls, never for speed. It plays what PyCUDA and the engine runner use, and is stricter
 * than a GPU: work waits in its stream until somebody synchronises, copies check both of their ends, new memory is full
 * of NaN, and nearly every call wants a current context. All else that PyCUDA links against answers "not supported"
 * (machine.py writes those functions). What an engine computes comes as a callback (stand_in_enqueue).
 *
 * The environment sets what the GPU is:
 *   STAND_IN_CAPABILITY  compute capability, such as 8.9 (the default)
 *   STAND_IN_MEMORY      bytes of the GPU's memory (default 16 GiB)
 *
 * Tests read the counters stand_in_* below, and may write stand_in_memory.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
} result;

typedef uint64_t address;  /* CUdeviceptr */

atomic_long stand_in_contexts;      /* pushed and not popped, of all threads */
atomic_long stand_in_device_bytes;  /* allocated on the GPU */
atomic_long stand_in_host_bytes;    /* allocated as page-locked memory of the host */
atomic_long stand_in_streams;
atomic_long stand_in_events;
atomic_long stand_in_graphs;        /* captured and not destroyed */
atomic_long stand_in_executables;   /* instantiated graphs that are not destroyed */
atomic_long stand_in_engine_runs;   /* engines that have computed, queued plainly or replayed */
atomic_long stand_in_launches;      /* graphs that were launched */
atomic_long stand_in_memory;        /* bytes that the GPU has */

static atomic_int initialized;
static atomic_int broken;  /* the error of work that failed; a context never recovers from it */

/* --- contexts ----------------------------------------------------------------------------------------------------- */

enum { DEEPEST = 64 };

static struct { int unused; } primary;  /* its address is the handle of the only context */
static atomic_int primary_holders;
static _Thread_local void *stack[DEEPEST];
static _Thread_local int depth;

static result context_error(void) {
    if (depth == 0) return INVALID_CONTEXT;
    if (primary_holders == 0) return CONTEXT_IS_DESTROYED;
    return broken;
}

#define NEED(condition, error) do { if (!(condition)) return (error); } while (0)
#define NEED_CONTEXT() do { result error = context_error(); if (error) return error; } while (0)

int stand_in_depth(void) { return depth; }

result cuDevicePrimaryCtxRetain(void **context, int device) {
    NEED(initialized, NOT_INITIALIZED);
    NEED(device == 0, INVALID_DEVICE);
    primary_holders++;
    *context = &primary;
    return SUCCESS;
}

result cuDevicePrimaryCtxRelease_v2(int device) {
    NEED(device == 0, INVALID_DEVICE);
    NEED(primary_holders > 0, INVALID_CONTEXT);
    primary_holders--;
    return SUCCESS;
}

result cuCtxPushCurrent_v2(void *context) {
    NEED(context == &primary && depth < DEEPEST, INVALID_CONTEXT);
    stack[depth++] = context;
    stand_in_contexts++;
    return SUCCESS;
}

result cuCtxPopCurrent_v2(void **context) {
    NEED(depth > 0, INVALID_CONTEXT);
    *context = stack[--depth];
    stand_in_contexts--;
    return SUCCESS;
}

/* What PyCUDA does with a primary context that it holds until the process ends. */
result cuCtxDetach(void *context) {
    return cuCtxPopCurrent_v2(&context);
}

result cuCtxGetDevice(int *device) {
    NEED_CONTEXT();
    *device = 0;
    return SUCCESS;
}

/* --- the device --------------------------------------------------------------------------------------------------- */

static int capability(int minor) {
    const char *text = getenv("STAND_IN_CAPABILITY");
    int numbers[2] = {8, 9};
    if (text) sscanf(text, "%d.%d", &numbers[0], &numbers[1]);
    return numbers[minor];
}

__attribute__((constructor)) static void read_environment(void) {
    const char *memory = getenv("STAND_IN_MEMORY");
    stand_in_memory = memory ? atol(memory) : 16L << 30;
}

result cuInit(unsigned flags) {
    initialized = flags == 0;
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}

result cuDriverGetVersion(int *version) { *version = 12090; return SUCCESS; }

result cuDeviceGetCount(int *count) {
    NEED(initialized, NOT_INITIALIZED);
    *count = 1;
    return SUCCESS;
}

result cuDeviceGet(int *device, int index) {
    NEED(initialized, NOT_INITIALIZED);
    NEED(index == 0, INVALID_DEVICE);
    *device = 0;
    return SUCCESS;
}

result cuDeviceGetName(char *name, int size, int device) {
    NEED(device == 0, INVALID_DEVICE);
    snprintf(name, size, "stand-in GPU");
    return SUCCESS;
}

result cuDeviceComputeCapability(int *major, int *minor, int device) {
    NEED(device == 0, INVALID_DEVICE);
    *major = capability(0);
    *minor = capability(1);
    return SUCCESS;
}

result cuDeviceGetAttribute(int *value, int attribute, int device) {
    enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };
    NEED(device == 0, INVALID_DEVICE);
    NEED(attribute == CAPABILITY_MAJOR || attribute == CAPABILITY_MINOR, NOT_SUPPORTED);
    *value = capability(attribute - CAPABILITY_MAJOR);
    return SUCCESS;
}

result cuGetErrorString(result error, const char **text) {
    switch (error) {
    case SUCCESS: *text = "no error"; break;
    case INVALID_VALUE: *text = "invalid argument"; break;
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case INVALID_CONTEXT: *text = "invalid device context"; break;
    case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
    case LAUNCH_FAILED: *text = "unspecified launch failure"; break;
    case NOT_SUPPORTED: *text = "operation not supported"; break;
    case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
    case CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; break;
    default: *text = "error of the stand-in driver";
    }
    return SUCCESS;
}

/* --- work, and lists of it ---------------------------------------------------------------------------------------- */

struct event {
    struct stream *stream;
    double milliseconds;  /* when it was reached */
    enum { UNRECORDED, PENDING, REACHED, CAPTURED } state;
};

/* What an engine does: with `release` 0 it computes and returns 0 if all is well; 1 says that `argument` is done with. */
typedef int engine_call(void *argument, int release);

/* One copy, engine or event. A stream's queue and any number of graphs may hold the same work. */
struct work {
    atomic_int holders;
    enum { COPY_IN, COPY_OUT, ENGINE, EVENT } kind;
    void *to;
    const void *from;
    size_t bytes;
    engine_call *call;
    void *argument;
    struct event *event;
};

struct list {
    struct work **works;
    size_t count;
};

struct graph {
    struct list list;
    int alive;  /* handles are never freed, so that a use after the end is seen */
};

struct stream {
    struct list queue;
    struct graph *capture;  /* NULL when none is under way */
    int invalid;            /* the capture under way has failed */
    int alive;
};

static _Thread_local struct stream *capturing_here;

static void add(struct list *list, struct work *work) {
    list->works = realloc(list->works, (list->count + 1) * sizeof *list->works);
    list->works[list->count++] = work;
    work->holders++;
}

static void let_go(struct work *work) {
    if (--work->holders > 0) return;
    if (work->kind == ENGINE) work->call(work->argument, 1);
    free(work);
}

static void empty(struct list *list) {
    for (size_t i = 0; i < list->count; i++) let_go(list->works[i]);
    free(list->works);
    *list = (struct list){0};
}

/* --- memory ------------------------------------------------------------------------------------------------------- */

struct block {
    struct block *next;
    char *start;
    size_t bytes;
    int on_device;
};

static struct block *blocks;
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;

/* Calls that a capture by the same thread forbids end that capture. */
static result forbid_while_capturing(void) {
    if (!capturing_here) return SUCCESS;
    capturing_here->invalid = 1;
    return CAPTURE_UNSUPPORTED;
}

static int lies_within_a_block(const void *start, size_t bytes, int on_device) {
    const char *first = start;
    int found = 0;
    pthread_mutex_lock(&blocks_lock);
    for (struct block *block = blocks; block && !found; block = block->next)
        found = block->on_device == on_device && first >= block->start && first + bytes <= block->start + block->bytes;
    pthread_mutex_unlock(&blocks_lock);
    return found;
}

/* Memory that is only counted, an engine's weights and intermediate results; negative to give it back. */
result stand_in_reserve(long bytes) {
    if (bytes > 0) {
        NEED_CONTEXT();
        NEED(forbid_while_capturing() == SUCCESS, CAPTURE_UNSUPPORTED);
        NEED(stand_in_device_bytes + bytes <= stand_in_memory, OUT_OF_MEMORY);
    }
    stand_in_device_bytes += bytes;
    return SUCCESS;
}

static result allocate(void **start, size_t bytes, int on_device) {
    NEED_CONTEXT();
    NEED(forbid_while_capturing() == SUCCESS, CAPTURE_UNSUPPORTED);
    NEED(bytes > 0, INVALID_VALUE);
    if (on_device) NEED(stand_in_device_bytes + (long)bytes <= stand_in_memory, OUT_OF_MEMORY);
    struct block *block = malloc(sizeof *block);
    char *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    *block = (struct block){.start = memory, .bytes = bytes, .on_device = on_device};
    NEED(memory, OUT_OF_MEMORY);
    memset(memory, 0xff, bytes);  /* NaN as float and as half */
    pthread_mutex_lock(&blocks_lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&blocks_lock);
    *(on_device ? &stand_in_device_bytes : &stand_in_host_bytes) += bytes;
    *start = block->start;
    return SUCCESS;
}

static result release(void *start, int on_device) {
    NEED_CONTEXT();
    NEED(forbid_while_capturing() == SUCCESS, CAPTURE_UNSUPPORTED);
    pthread_mutex_lock(&blocks_lock);
    struct block **link = &blocks;
    while (*link && ((*link)->start != start || (*link)->on_device != on_device)) link = &(*link)->next;
    struct block *block = *link;
    if (block) *link = block->next;
    pthread_mutex_unlock(&blocks_lock);
    NEED(block, INVALID_VALUE);
    *(on_device ? &stand_in_device_bytes : &stand_in_host_bytes) -= block->bytes;
    free(block->start);
    free(block);
    return SUCCESS;
}

result cuMemAlloc_v2(address *start, size_t bytes) { return allocate((void **)start, bytes, 1); }
result cuMemFree_v2(address start) { return release((void *)start, 1); }
result cuMemFreeHost(void *start) { return release(start, 0); }

result cuMemHostAlloc(void **start, size_t bytes, unsigned flags) {
    (void)flags;
    return allocate(start, bytes, 0);
}

result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    NEED_CONTEXT();
    *total = stand_in_memory;
    *free_bytes = stand_in_memory - stand_in_device_bytes;
    return SUCCESS;
}

/* --- streams ------------------------------------------------------------------------------------------------------ */

/* Every stream is one that was made: the default stream, handle 0, is not for work that shall run beside other work. */
#define NEED_STREAM(stream) do { NEED_CONTEXT(); NEED((stream) && (stream)->alive, INVALID_HANDLE); } while (0)

static double now(void) {
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return time.tv_sec * 1e3 + time.tv_nsec * 1e-6;
}

static result perform(struct work *work) {
    switch (work->kind) {
    case COPY_IN:
    case COPY_OUT:
        NEED(lies_within_a_block(work->to, work->bytes, work->kind == COPY_IN), ILLEGAL_ADDRESS);
        NEED(lies_within_a_block(work->from, work->bytes, work->kind == COPY_OUT), ILLEGAL_ADDRESS);
        memcpy(work->to, work->from, work->bytes);
        return SUCCESS;
    case ENGINE:
        stand_in_engine_runs++;
        return work->call(work->argument, 0) == 0 ? SUCCESS : LAUNCH_FAILED;
    case EVENT:
        work->event->milliseconds = now();
        work->event->state = REACHED;
    }
    return SUCCESS;
}

/* Run what waits in a stream. One thread at a time uses a stream; no lock is held, as engines call into Python. */
static result drain(struct stream *stream) {
    struct list waiting = stream->queue;
    stream->queue = (struct list){0};
    for (size_t i = 0; i < waiting.count && !broken; i++) {
        result error = perform(waiting.works[i]);
        if (error) broken = error;
    }
    empty(&waiting);
    return broken;
}

static result enqueue(struct stream *stream, struct work work) {
    NEED_STREAM(stream);
    NEED(!stream->invalid, CAPTURE_INVALIDATED);
    struct work *copy = malloc(sizeof *copy);
    memcpy(copy, &work, sizeof *copy);
    add(stream->capture ? &stream->capture->list : &stream->queue, copy);
    return SUCCESS;
}

result stand_in_enqueue(struct stream *stream, engine_call *call, void *argument) {
    return enqueue(stream, (struct work){.kind = ENGINE, .call = call, .argument = argument});
}

result cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, struct stream *stream) {
    return enqueue(stream, (struct work){.kind = COPY_IN, .to = (void *)to, .from = from, .bytes = bytes});
}

result cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, struct stream *stream) {
    return enqueue(stream, (struct work){.kind = COPY_OUT, .to = to, .from = (void *)from, .bytes = bytes});
}

result cuStreamCreate(struct stream **stream, unsigned flags) {
    (void)flags;
    NEED_CONTEXT();
    *stream = calloc(1, sizeof **stream);
    (*stream)->alive = 1;
    stand_in_streams++;
    return SUCCESS;
}

result cuStreamDestroy_v2(struct stream *stream) {
    NEED_STREAM(stream);
    result error = drain(stream);
    stream->alive = 0;
    stand_in_streams--;
    return error;
}

result cuStreamSynchronize(struct stream *stream) {
    NEED_STREAM(stream);
    if (stream->capture) {
        stream->invalid = 1;
        return CAPTURE_UNSUPPORTED;
    }
    return drain(stream);
}

/* --- events ------------------------------------------------------------------------------------------------------- */

result cuEventCreate(struct event **event, unsigned flags) {
    (void)flags;
    NEED_CONTEXT();
    *event = calloc(1, sizeof **event);
    stand_in_events++;
    return SUCCESS;
}

result cuEventDestroy_v2(struct event *event) {
    NEED_CONTEXT();
    if (event->state != PENDING) free(event);  /* otherwise its stream will still write to it */
    stand_in_events--;
    return SUCCESS;
}

result cuEventRecord(struct event *event, struct stream *stream) {
    NEED_STREAM(stream);
    event->stream = stream;
    event->state = stream->capture ? CAPTURED : PENDING;
    return stream->capture ? SUCCESS : enqueue(stream, (struct work){.kind = EVENT, .event = event});
}

result cuEventSynchronize(struct event *event) {
    NEED_CONTEXT();
    NEED(event->state != CAPTURED, CAPTURED_EVENT);
    return event->state == PENDING ? drain(event->stream) : SUCCESS;
}

result cuEventElapsedTime(float *milliseconds, struct event *start, struct event *end) {
    NEED_CONTEXT();
    NEED(start->state != CAPTURED && end->state != CAPTURED, CAPTURED_EVENT);
    NEED(start->state != UNRECORDED && end->state != UNRECORDED, INVALID_HANDLE);
    NEED(start->state == REACHED && end->state == REACHED, NOT_READY);
    *milliseconds = (float)(end->milliseconds - start->milliseconds);
    return SUCCESS;
}

/* --- graphs ------------------------------------------------------------------------------------------------------- */

static struct graph *new_graph(void) {
    struct graph *graph = calloc(1, sizeof *graph);
    graph->alive = 1;
    return graph;
}

static result end_graph(struct graph *graph, atomic_long *counter) {
    NEED(graph && graph->alive, INVALID_VALUE);
    empty(&graph->list);
    graph->alive = 0;
    --*counter;
    return SUCCESS;
}

result cuStreamIsCapturing(struct stream *stream, int *status) {
    NEED_STREAM(stream);
    *status = stream->capture ? (stream->invalid ? 2 : 1) : 0;
    return SUCCESS;
}

result cuStreamBeginCapture_v2(struct stream *stream, int mode) {
    enum { THREAD_LOCAL = 1 };
    NEED_STREAM(stream);
    NEED(mode == THREAD_LOCAL, NOT_SUPPORTED);
    NEED(!stream->capture && !capturing_here, ILLEGAL_STATE);
    stream->capture = new_graph();
    stream->invalid = 0;
    capturing_here = stream;
    stand_in_graphs++;
    return SUCCESS;
}

result cuStreamEndCapture(struct stream *stream, struct graph **graph) {
    NEED_STREAM(stream);
    NEED(stream->capture, ILLEGAL_STATE);
    NEED(capturing_here == stream, CAPTURE_WRONG_THREAD);
    *graph = stream->capture;
    stream->capture = NULL;
    capturing_here = NULL;
    if (!stream->invalid) return SUCCESS;
    stream->invalid = 0;
    end_graph(*graph, &stand_in_graphs);
    *graph = NULL;
    return CAPTURE_INVALIDATED;
}

result cuGraphInstantiateWithFlags(struct graph **executable, struct graph *graph, unsigned long long flags) {
    NEED_CONTEXT();
    NEED(graph && graph->alive && flags == 0, INVALID_VALUE);
    *executable = new_graph();
    for (size_t i = 0; i < graph->list.count; i++) add(&(*executable)->list, graph->list.works[i]);
    stand_in_executables++;
    return SUCCESS;
}

result cuGraphLaunch(struct graph *executable, struct stream *stream) {
    NEED_STREAM(stream);
    NEED(!stream->capture, NOT_SUPPORTED);
    NEED(executable && executable->alive, INVALID_VALUE);
    for (size_t i = 0; i < executable->list.count; i++) add(&stream->queue, executable->list.works[i]);
    stand_in_launches++;
    return SUCCESS;
}

result cuGraphDestroy(struct graph *graph) { return end_graph(graph, &stand_in_graphs); }
result cuGraphExecDestroy(struct graph *executable) { return end_graph(executable, &stand_in_executables); }
