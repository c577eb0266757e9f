// The part of the CUDA driver API that is used, opened at run time: no toolkit is needed to build.
// Types and values are those of cuda.h; tests/abi_check.cpp compares them with one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "status.h"

namespace ft::cuda {

using Result = int;
using Device = int;
using Address = unsigned long long;
using Context = struct ContextTag*;
using Module = struct ModuleTag*;
using Function = struct FunctionTag*;
using Stream = struct StreamTag*;
using Event = struct EventTag*;
using Graph = struct GraphTag*;
using GraphExec = struct GraphExecTag*;

constexpr Result kOutOfMemory = 2, kNoDevice = 100;
constexpr int kMultiprocessors = 16, kMajor = 75, kMinor = 76;          // device attributes
constexpr int kSharedPerBlockOptin = 97;
constexpr int kFunctionStaticShared = 1, kFunctionDynamicShared = 8;    // function attributes
constexpr int kPreferShared = 1;
constexpr unsigned kNonBlocking = 1, kDisableTiming = 2;
constexpr int kCaptureThreadLocal = 1;
constexpr int kMemoryDevice = 2;
constexpr int kPatchedMaps = 13010;  // the last driver whose small tensor maps need a patch
constexpr unsigned kProgrammaticSerialization = 6;

struct LaunchAttribute {
  unsigned id;
  char pad[4];
  union {
    char bytes[64];
    int programmatic;
    uint64_t align;
  } value;
};

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

struct alignas(128) TensorMap {  // 64 before CUDA 13
  uint64_t opaque[16];
};

struct Copy2D {
  size_t src_x, src_y;
  int src_type;
  const void* src_host;
  Address src;
  void* src_array;
  size_t src_pitch;
  size_t dst_x, dst_y;
  int dst_type;
  void* dst_host;
  Address dst;
  void* dst_array;
  size_t dst_pitch;
  size_t width, height;
};

// Functions by the names that the driver exports.
#define FT_CUDA_FUNCTIONS(F)                                                                     \
  F(cuInit, unsigned)                                                                            \
  F(cuGetErrorName, Result, const char**)                                                        \
  F(cuDriverGetVersion, int*)                                                                    \
  F(cuDeviceGetCount, int*)                                                                      \
  F(cuDeviceGet, Device*, int)                                                                   \
  F(cuDeviceGetName, char*, int, Device)                                                         \
  F(cuDeviceGetAttribute, int*, int, Device)                                                     \
  F(cuDevicePrimaryCtxRetain, Context*, Device)                                                  \
  F(cuDevicePrimaryCtxRelease_v2, Device)                                                        \
  F(cuCtxPushCurrent_v2, Context)                                                                \
  F(cuCtxPopCurrent_v2, Context*)                                                                \
  F(cuModuleLoadData, Module*, const void*)                                                      \
  F(cuModuleUnload, Module)                                                                      \
  F(cuModuleGetFunction, Function*, Module, const char*)                                         \
  F(cuFuncGetAttribute, int*, int, Function)                                                     \
  F(cuFuncSetAttribute, Function, int, int)                                                      \
  F(cuFuncSetCacheConfig, Function, int)                                                         \
  F(cuMemAlloc_v2, Address*, size_t)                                                             \
  F(cuMemFree_v2, Address)                                                                       \
  F(cuMemcpyHtoDAsync_v2, Address, const void*, size_t, Stream)                                  \
  F(cuMemcpyDtoHAsync_v2, void*, Address, size_t, Stream)                                        \
  F(cuMemcpyDtoDAsync_v2, Address, Address, size_t, Stream)                                      \
  F(cuMemcpy2DAsync_v2, const Copy2D*, Stream)                                                   \
  F(cuStreamCreate, Stream*, unsigned)                                                           \
  F(cuStreamDestroy_v2, Stream)                                                                  \
  F(cuStreamSynchronize, Stream)                                                                 \
  F(cuStreamWaitEvent, Stream, Event, unsigned)                                                  \
  F(cuStreamGetId, Stream, unsigned long long*)                                                  \
  F(cuStreamBeginCapture_v2, Stream, int)                                                        \
  F(cuStreamEndCapture, Stream, Graph*)                                                          \
  F(cuEventCreate, Event*, unsigned)                                                             \
  F(cuEventDestroy_v2, Event)                                                                    \
  F(cuEventRecord, Event, Stream)                                                                \
  F(cuEventSynchronize, Event)                                                                   \
  F(cuGraphInstantiateWithFlags, GraphExec*, Graph, unsigned long long)                          \
  F(cuGraphLaunch, GraphExec, Stream)                                                            \
  F(cuGraphDestroy, Graph)                                                                       \
  F(cuGraphExecDestroy, GraphExec)                                                               \
  F(cuLaunchKernelEx, const LaunchConfig*, Function, void**, void**)                             \
  F(cuTensorMapEncodeTiled, TensorMap*, int, uint32_t, void*, const uint64_t*, const uint64_t*,  \
    const uint32_t*, const uint32_t*, int, int, int, int)

struct Driver {
#define FT_POINTER(name, ...) Result (*name)(__VA_ARGS__);
  FT_CUDA_FUNCTIONS(FT_POINTER)
#undef FT_POINTER
  int version;
};

// The driver, opened and initialised once; throws Error where there is none.
const Driver& driver();

// Throws Error that names the call and CUDA's error unless `result` is success.
void check(Result result, const char* what);

}  // namespace ft::cuda
