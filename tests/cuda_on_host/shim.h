// CUDA on the host, for tests.  Every CUDA thread is a fiber and __syncthreads() a barrier between fibers.  Several blocks
// are alive at once, and at each atomic and RACE_POINT the fiber may be interrupted at random (seeded), so lock-free code
// meets adversarial interleavings that a GPU shows once a week.  Shared memory starts as poison.
//
// A launch fails, with a message, where a GPU would hang or be undefined: threads of a block at different barriers or gone
// while others wait, and loops that do not end.  Not modelled: weak memory order, warps.
#pragma once
#define HOST_BUILD 1
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace host {

constexpr unsigned long STEPS = 100'000'000;  // race points in a launch, beyond which it counts as hung
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 1 << 17;
#else
constexpr size_t STACK = 1 << 14;
#endif

struct Fiber;

struct Block {
    dim3 index;
    unsigned live;                   // threads that have not returned
    unsigned returned = 0;
    int line = 0;                    // of the barrier that threads wait at
    std::vector<Fiber*> waiting;
    std::unordered_map<int, std::unique_ptr<char[]>> shared;  // by source line
};

struct Fiber {
    ucontext_t context;
    jmp_buf resume;
    std::unique_ptr<char[]> stack{new char[STACK]};
    Block* block = nullptr;
    dim3 thread;
    enum { NEW, READY, WAITING, DONE } state = NEW;
};

static Fiber* current;
[[maybe_unused]] static ucontext_t scheduler;
[[maybe_unused]] static jmp_buf scheduler_resume;
static dim3 grid_size, block_size;
static std::mt19937 random_bits;
static uint32_t threshold;  // of 2^32: how often a race point switches
static std::function<void()> body;
static const char* failure;
static unsigned long steps, switches;

// swapcontext saves the signal mask, a system call each way; it only starts a fiber.  Address sanitizer needs it always.
__attribute__((noinline)) static void leave() {
#ifdef __SANITIZE_ADDRESS__
    swapcontext(&current->context, &scheduler);
#else
    if (!_setjmp(current->resume)) _longjmp(scheduler_resume, 1);
#endif
}

__attribute__((noinline)) static void enter(Fiber* f) {
    current = f;
    const bool fresh_start = f->state == Fiber::NEW;
    f->state = Fiber::READY;
#ifdef __SANITIZE_ADDRESS__
    (void)fresh_start;
    swapcontext(&scheduler, &f->context);
#else
    if (!_setjmp(scheduler_resume)) {
        if (fresh_start) setcontext(&f->context);
        _longjmp(f->resume, 1);
    }
#endif
}

static void fail(const char* message) {
    if (!failure) failure = message;
    leave();
}

static void race() {
    if (++steps > STEPS) fail("a loop does not end");
    if (threshold && random_bits() < threshold) {
        ++switches;
        leave();
    }
}

static void barrier(int line) {
    Block* b = current->block;
    if (b->returned) fail("a thread waits at a barrier, others of its block have returned");
    if (!b->waiting.empty() && b->line != line) fail("threads of a block wait at different barriers");
    b->line = line;
    b->waiting.push_back(current);
    current->state = Fiber::WAITING;
    leave();
}

static void entry() {
    body();
    Block* b = current->block;
    --b->live;
    ++b->returned;
    if (!b->waiting.empty()) fail("a thread has returned, others of its block wait at a barrier");
    current->state = Fiber::DONE;
    leave();
}

__attribute__((noinline)) static void prepare(Fiber* f) {
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack.get();
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = nullptr;
    makecontext(&f->context, entry, 0);
}

static void* shared(int line, size_t bytes) {
    auto& memory = current->block->shared[line];
    if (!memory) {
        memory.reset(new char[bytes]);
        memset(memory.get(), 0xA5, bytes);
    }
    return memory.get();
}

// What a launch is given besides the kernel's arguments.
struct Shape {
    unsigned grid[3], block[3], seed, live_blocks;
    double switch_probability;
};

// A pointer argument, of whatever type the kernel has it.
struct Any {
    void* pointer;
    template <class T> operator T*() const { return (T*)pointer; }
};

// Runs a grid.  Returns null, or what went wrong.
static const char* launch(const Shape& shape, std::function<void()> kernel) {
    const dim3 grid(shape.grid[0], shape.grid[1], shape.grid[2]), block(shape.block[0], shape.block[1], shape.block[2]);
    grid_size = grid;
    block_size = block;
    body = std::move(kernel);
    random_bits.seed(shape.seed);
    threshold = (uint32_t)(shape.switch_probability * 4294967295.0);
    failure = nullptr;
    steps = switches = 0;
    std::vector<dim3> order;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) order.emplace_back(x, y, z);
    if (threshold) std::shuffle(order.begin(), order.end(), random_bits);

    const unsigned threads = block.x * block.y * block.z;
    std::deque<Fiber*> ready;
    std::deque<std::unique_ptr<Block>> blocks;
    size_t next = 0;
    unsigned alive = 0;
    static std::vector<std::unique_ptr<Fiber>> pool;  // stacks are kept from launch to launch
    size_t used = 0;
    std::vector<Fiber*> free_fibers;
    while (true) {
        for (; next < order.size() && alive < shape.live_blocks; ++next, ++alive) {
            blocks.emplace_back(new Block{order[next], threads, 0, 0, {}, {}});
            for (unsigned t = 0; t < threads; ++t) {
                Fiber* f;
                if (free_fibers.empty()) {
                    if (used == pool.size()) pool.emplace_back(new Fiber);
                    f = pool[used++].get();
                } else {
                    f = free_fibers.back();
                    free_fibers.pop_back();
                }
                f->state = Fiber::NEW;
                f->block = blocks.back().get();
                f->thread = dim3(t % block.x, t / block.x % block.y, t / (block.x * block.y));
                prepare(f);
                ready.push_back(f);
            }
        }
        if (ready.empty()) return nullptr;
        if (threshold) std::swap(ready.front(), ready[random_bits() % ready.size()]);
        Fiber* f = ready.front();
        ready.pop_front();
        enter(f);
        if (failure) return failure;
        Block* b = f->block;
        if (f->state == Fiber::READY) {
            ready.push_back(f);
        } else if (f->state == Fiber::WAITING) {
            if (b->waiting.size() == b->live) {
                for (Fiber* w : b->waiting) w->state = Fiber::READY;
                ready.insert(ready.end(), b->waiting.begin(), b->waiting.end());
                b->waiting.clear();
            }
        } else {
            free_fibers.push_back(f);
            if (b->live == 0) {
                b->shared.clear();
                --alive;
            }
        }
    }
}

}  // namespace host

extern "C" unsigned long switches() { return host::switches; }

#define __global__
#define __device__
#define __forceinline__ inline
#define threadIdx (host::current->thread)
#define blockIdx (host::current->block->index)
#define blockDim (host::block_size)
#define gridDim (host::grid_size)
#define __syncthreads() host::barrier(__LINE__)
#define RACE_POINT() host::race()
#define SHARED(T, name, n) T* const name = (T*)host::shared(__LINE__, sizeof(T) * (n))

template <class T, class F>
static T atomic(T* p, F change) {
    host::race();
    const T old = *p;
    *p = change(old);
    host::race();
    return old;
}
template <class T> static T atomicMin(T* p, T v) { return atomic(p, [v](T o) { return std::min(o, v); }); }
template <class T> static T atomicMax(T* p, T v) { return atomic(p, [v](T o) { return std::max(o, v); }); }
template <class T> static T atomicAdd(T* p, T v) { return atomic(p, [v](T o) { return (T)(o + v); }); }
template <class T> static T atomicOr(T* p, T v) { return atomic(p, [v](T o) { return (T)(o | v); }); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline unsigned __float_as_uint(float v) { unsigned r; memcpy(&r, &v, 4); return r; }
static inline float __uint_as_float(unsigned v) { float r; memcpy(&r, &v, 4); return r; }
