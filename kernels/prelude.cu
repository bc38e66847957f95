// The first lines of every CUDA source of this package.  Each source serves NVRTC (by way of CuPy) and the C++ compiler
// of the host, under which the tests run it; they define HOST_BUILD and their own SHARED and RACE_POINT.
#ifndef HOST_BUILD
#define SHARED(T, name, n) __shared__ T name[n]
#define RACE_POINT()
#endif
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// The value that other threads have written by now.  A race checker cannot tell these reads, which may be late by
// design, from a hazard; with ATOMIC_READS they are atomic and all that it still reports is a fault.
__device__ __forceinline__ int fresh(int* p) {
#ifdef ATOMIC_READS
    return atomicOr(p, 0);
#else
    return *(volatile int*)p;
#endif
}
