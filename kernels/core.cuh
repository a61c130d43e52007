// What every kernel starts from: fixed-width names, bit casts, and the marks of functions that the host compiles too.
//
// Headers ending in .cuh hold functions for device and host alike: a test compiles them with the system's C++ compiler
// and compares them bit for bit with the Rust reference. No header of a toolkit is needed: NVRTC finds none on most
// machines.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define DEVICE __device__ __forceinline__
#else
#define HOST_DEVICE static inline
#define DEVICE static inline
#endif

#ifndef __CUDACC__
#define __align__(bytes) __attribute__((aligned(bytes)))
#endif

// A kernel of at most `threads` threads a block.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// The same, of which two blocks share a multiprocessor: up to 255 registers instead of what the assembler would choose.
#define KERNEL_OF_MANY_REGISTERS(threads) extern "C" __global__ void __launch_bounds__(threads, 2)

HOST_DEVICE u32 bits_of(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
#endif
}

HOST_DEVICE float float_of(u32 bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
#endif
}

#ifndef INFINITY
#define INFINITY float_of(0x7f800000u)
#endif

HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
HOST_DEVICE int greatest(int a, int b) { return a > b ? a : b; }
HOST_DEVICE u32 greatest_u32(u32 a, u32 b) { return a > b ? a : b; }
HOST_DEVICE float absolute(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
