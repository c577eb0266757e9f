// Compiles only if src/cuda.h says what the real cuda.h does.
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "../src/cuda.h"

using namespace ft::cuda;

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
static_assert(sizeof(Address) == sizeof(CUdeviceptr) && sizeof(Device) == sizeof(CUdevice));

#define SAME(a, x, b, y)                                              \
  static_assert(offsetof(a, x) == offsetof(b, y) &&                   \
                sizeof(std::declval<a>().x) == sizeof(std::declval<b>().y))

static_assert(sizeof(LaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(LaunchConfig, grid) == offsetof(CUlaunchConfig, gridDimX));
static_assert(offsetof(LaunchConfig, block) == offsetof(CUlaunchConfig, blockDimX));
SAME(LaunchConfig, shared_bytes, CUlaunchConfig, sharedMemBytes);
SAME(LaunchConfig, stream, CUlaunchConfig, hStream);
SAME(LaunchConfig, attributes, CUlaunchConfig, attrs);
SAME(LaunchConfig, attribute_count, CUlaunchConfig, numAttrs);

static_assert(sizeof(LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));

static_assert(sizeof(Copy2D) == sizeof(CUDA_MEMCPY2D));
SAME(Copy2D, src_type, CUDA_MEMCPY2D, srcMemoryType);
SAME(Copy2D, src, CUDA_MEMCPY2D, srcDevice);
SAME(Copy2D, src_pitch, CUDA_MEMCPY2D, srcPitch);
SAME(Copy2D, dst_type, CUDA_MEMCPY2D, dstMemoryType);
SAME(Copy2D, dst, CUDA_MEMCPY2D, dstDevice);
SAME(Copy2D, dst_pitch, CUDA_MEMCPY2D, dstPitch);
SAME(Copy2D, width, CUDA_MEMCPY2D, WidthInBytes);
SAME(Copy2D, height, CUDA_MEMCPY2D, Height);

static_assert(kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY && kNoDevice == CUDA_ERROR_NO_DEVICE);
static_assert(kMultiprocessors == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert(kMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kSharedPerBlockOptin == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert(kFunctionStaticShared == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
static_assert(kFunctionDynamicShared == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kPreferShared == CU_FUNC_CACHE_PREFER_SHARED);
static_assert(kNonBlocking == CU_STREAM_NON_BLOCKING && kDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kCaptureThreadLocal == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
static_assert(kMemoryDevice == CU_MEMORYTYPE_DEVICE);
static_assert(kProgrammaticSerialization == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
