/* Counts the work of Python code: bytes requested from its allocators, opcodes, and calls.
 *
 * The few declarations stand here instead of Python.h, which need not be installed. They are part of
 * the stable ABI, or of the C API that PEP 445 documents.
 */

#include <stddef.h>

typedef struct {
    void *ctx;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
} Allocator;

typedef int (*Tracer)(void *, void *, int, void *);

extern void PyMem_GetAllocator(int, Allocator *);
extern void PyMem_SetAllocator(int, Allocator *);
extern void PyEval_SetTrace(Tracer, void *);
extern void PyEval_SetProfile(Tracer, void *);
extern int PyObject_SetAttrString(void *, const char *, void *);

/* Allocators of raw memory, of other memory and of objects. */
enum { DOMAINS = 3 };
/* Events of tracers. */
enum { CALL = 0, C_CALL = 4, OPCODE = 7 };
/* Allocated bytes, opcodes and calls since `start`. */
enum { BYTES, OPCODES, CALLS, COUNTERS };

unsigned long long counts[COUNTERS];
static Allocator own[DOMAINS];

/* Raw memory is also requested by threads that do not hold the GIL. */
static void add_bytes(size_t bytes) {
    __atomic_fetch_add(&counts[BYTES], bytes, __ATOMIC_RELAXED);
}

static void *counting_malloc(void *ctx, size_t bytes) {
    Allocator *next = ctx;
    add_bytes(bytes);
    return next->malloc(next->ctx, bytes);
}

static void *counting_calloc(void *ctx, size_t count, size_t bytes) {
    Allocator *next = ctx;
    add_bytes(count * bytes);
    return next->calloc(next->ctx, count, bytes);
}

static void *counting_realloc(void *ctx, void *memory, size_t bytes) {
    Allocator *next = ctx;
    add_bytes(bytes);
    return next->realloc(next->ctx, memory, bytes);
}

static void plain_free(void *ctx, void *memory) {
    Allocator *next = ctx;
    next->free(next->ctx, memory);
}

/* `yes` is True: each frame is asked to report its opcodes. */
static int trace(void *yes, void *frame, int event, void *argument) {
    (void)argument;
    if (event == CALL) {
        return PyObject_SetAttrString(frame, "f_trace_opcodes", yes);
    }
    counts[OPCODES] += event == OPCODE;
    return 0;
}

static int profile(void *object, void *frame, int event, void *argument) {
    (void)object;
    (void)frame;
    (void)argument;
    counts[CALLS] += event == CALL || event == C_CALL;
    return 0;
}

void start(void *yes) {
    for (int counter = 0; counter < COUNTERS; counter++) {
        counts[counter] = 0;
    }
    for (int domain = 0; domain < DOMAINS; domain++) {
        PyMem_GetAllocator(domain, &own[domain]);
        Allocator counting = {
            &own[domain], counting_malloc, counting_calloc, counting_realloc, plain_free,
        };
        PyMem_SetAllocator(domain, &counting);
    }
    PyEval_SetProfile(profile, NULL);
    PyEval_SetTrace(trace, yes);
}

void stop(void) {
    PyEval_SetTrace(NULL, NULL);
    PyEval_SetProfile(NULL, NULL);
    for (int domain = 0; domain < DOMAINS; domain++) {
        PyMem_SetAllocator(domain, &own[domain]);
    }
}
