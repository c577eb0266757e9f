// A stand-in for libcuda.so.1, built with the real cuda.h: it writes down launches, and computes
// nothing. "Device" memory is host memory. Both this library and Triton's launcher run on it.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <sys/mman.h>

namespace {

struct Parameter {
  unsigned offset, size;
};

struct MockModule {
  const unsigned char* image;
};

struct MockFunction {
  std::string name, cubin;  // hash of the code
  std::vector<Parameter> parameters;
  int dynamic_shared = 0;
};

struct Map {
  std::string text;
};

std::mutex mutex_;
std::string log_;
std::map<std::string, std::pair<CUresult, int>> faults;  // result, and after how many calls
std::map<CUdeviceptr, size_t> memory;
CUdeviceptr first = 0;
std::vector<Map> maps;
long live = 0;
thread_local std::vector<CUcontext> contexts;
thread_local CUcontext current = nullptr;
CUcontext primary = reinterpret_cast<CUcontext>(0x1000);

// The result that a call is to have.
CUresult fault(const char* name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = faults.find(name);
  if (found == faults.end()) return CUDA_SUCCESS;
  if (found->second.second-- > 0) return CUDA_SUCCESS;
  const CUresult result = found->second.first;
  faults.erase(found);
  return result;
}
#define CALL() \
  if (CUresult planned = fault(__func__)) return planned

int setting(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value ? std::atoi(value) : otherwise;
}

void write(const std::string& line) {
  const std::lock_guard<std::mutex> lock(mutex_);
  log_ += line + "\n";
}

template <class T>
T read(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Of an ELF file: the bytes of a section.
std::pair<const unsigned char*, size_t> section(const unsigned char* elf, const std::string& name) {
  const auto headers = elf + read<uint64_t>(elf + 0x28);
  const int size = read<uint16_t>(elf + 0x3A), count = read<uint16_t>(elf + 0x3C);
  const auto names = elf + read<uint64_t>(headers + size * read<uint16_t>(elf + 0x3E) + 0x18);
  for (int i = 0; i < count; ++i) {
    const auto header = headers + i * size;
    if (name == reinterpret_cast<const char*>(names + read<uint32_t>(header))) {
      return {elf + read<uint64_t>(header + 0x18), read<uint64_t>(header + 0x20)};
    }
  }
  return {nullptr, 0};
}

// A kernel's parameters, from what the assembler noted of them (EIATTR_KPARAM_INFO).
std::vector<Parameter> parameters(const unsigned char* elf, const std::string& kernel) {
  const auto [notes, size] = section(elf, ".nv.info." + kernel);
  std::vector<Parameter> found;
  for (size_t at = 0; at + 4 <= size;) {
    const int format = notes[at], kind = notes[at + 1];
    const int length = format == 4 ? read<uint16_t>(notes + at + 2) : 0;
    if (kind == 0x17) {
      const unsigned ordinal = read<uint16_t>(notes + at + 8);
      if (found.size() <= ordinal) found.resize(ordinal + 1);
      found[ordinal] = {read<uint16_t>(notes + at + 10), read<uint32_t>(notes + at + 12) >> 18};
    }
    at += 4 + length;
  }
  return found;
}

std::string hash(const unsigned char* data, size_t size) {
  uint64_t value = 14695981039346656037ull;
  for (size_t i = 0; i < size; ++i) value = (value ^ data[i]) * 1099511628211ull;
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

extern "C" {

// For tests: the lines so far, which are forgotten then.
const char* mock_log() {
  static std::string taken;
  const std::lock_guard<std::mutex> lock(mutex_);
  taken.swap(log_);
  log_.clear();
  return taken.c_str();
}
// A call that is to fail, after some that don't.
void mock_fail(const char* name, int result, int after) {
  const std::lock_guard<std::mutex> lock(mutex_);
  faults[name] = {static_cast<CUresult>(result), after};
}
// The allocation that was made first of those that are there.
unsigned long long mock_first(size_t* bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  *bytes = memory.at(first);
  return first;
}
// Objects that were made and not destroyed.
long mock_live() { return live; }

CUresult cuInit(unsigned) { CALL(); return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY      ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == CUDA_ERROR_ILLEGAL_ADDRESS  ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == CUDA_ERROR_NO_DEVICE        ? "CUDA_ERROR_NO_DEVICE"
                                                 : "CUDA_ERROR_UNKNOWN";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }
CUresult cuDriverGetVersion(int* version) { CALL(); *version = 12080; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { CALL(); *count = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int number) { CALL(); *device = number; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  std::snprintf(name, size, "Mock GPU");
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  CALL();
  const int capability = setting("MOCK_CUDA_CAPABILITY", 90);
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = setting("MOCK_CUDA_PROCESSORS", 132);
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 232448; break;
    default: *value = 1024;
  }
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  CALL();
  *context = primary;
  ++live;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { --live; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { *context = current; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext context) {
  CALL();
  if (!context) return CUDA_ERROR_INVALID_CONTEXT;
  contexts.push_back(current);
  current = context;
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = current;
  current = contexts.back();
  contexts.pop_back();
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetLimit(size_t* value, CUlimit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  CALL();
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  *module = reinterpret_cast<CUmodule>(new MockModule{static_cast<const unsigned char*>(image)});
  ++live;
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
  delete reinterpret_cast<MockModule*>(module);
  --live;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  CALL();
  const unsigned char* image = reinterpret_cast<MockModule*>(module)->image;
  const auto [code, size] = section(image, std::string(".text.") + name);
  if (!code) return CUDA_ERROR_NOT_FOUND;
  static std::map<std::string, MockFunction> functions;
  const std::lock_guard<std::mutex> lock(mutex_);
  MockFunction& found = functions[std::string(name) + " " + hash(code, size)];
  if (found.name.empty()) found = {name, hash(code, size), parameters(image, name)};
  *function = reinterpret_cast<CUfunction>(&found);
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  CALL();
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  CALL();
  // Newer attributes are for drivers that know them.
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  reinterpret_cast<MockFunction*>(function)->dynamic_shared = value;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) {
  *n = 1;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* data, CUpointer_attribute, CUdeviceptr pointer) {
  *static_cast<CUdeviceptr*>(data) = pointer;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute*, void** data,
                                CUdeviceptr pointer) {
  for (unsigned i = 0; i < count; ++i) *static_cast<CUdeviceptr*>(data[i]) = pointer;
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  CALL();
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = reinterpret_cast<CUdeviceptr>(found);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (memory.empty()) first = *address;
  memory[*address] = bytes;
  ++live;
  return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  munmap(reinterpret_cast<void*>(address), memory.at(address));
  memory.erase(address);
  --live;
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  CALL();
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
  return cuMemcpyHtoD_v2(to, from, bytes);
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream) {
  CALL();
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
  return cuMemcpyHtoD_v2(to, reinterpret_cast<const void*>(from), bytes);
}
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* copy, CUstream) {
  CALL();
  if (copy->srcMemoryType != CU_MEMORYTYPE_DEVICE || copy->dstMemoryType != CU_MEMORYTYPE_DEVICE ||
      copy->srcXInBytes || copy->srcY || copy->dstXInBytes || copy->dstY) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  char line[256];
  std::snprintf(line, sizeof line,
                "{\"copy\": [%llu, %zu, %llu, %zu, %zu, %zu]}", copy->srcDevice, copy->srcPitch,
                copy->dstDevice, copy->dstPitch, copy->WidthInBytes, copy->Height);
  write(line);
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned) {
  CALL();
  *stream = reinterpret_cast<CUstream>(new char);
  ++live;
  return CUDA_SUCCESS;
}
CUresult cuStreamDestroy_v2(CUstream stream) {
  delete reinterpret_cast<char*>(stream);
  --live;
  return CUDA_SUCCESS;
}
CUresult cuStreamGetId(CUstream stream, unsigned long long* id) {
  *id = reinterpret_cast<unsigned long long>(stream) + 1;
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream) { CALL(); return CUDA_SUCCESS; }
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { CALL(); return CUDA_SUCCESS; }
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode) { CALL(); return CUDA_SUCCESS; }
CUresult cuStreamEndCapture(CUstream, CUgraph* graph) {
  CALL();
  *graph = reinterpret_cast<CUgraph>(new char);
  ++live;
  return CUDA_SUCCESS;
}
CUresult cuEventCreate(CUevent* event, unsigned) {
  CALL();
  *event = reinterpret_cast<CUevent>(new char);
  ++live;
  return CUDA_SUCCESS;
}
CUresult cuEventDestroy_v2(CUevent event) {
  delete reinterpret_cast<char*>(event);
  --live;
  return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent, CUstream) { CALL(); return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { CALL(); return CUDA_SUCCESS; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec* graph, CUgraph, unsigned long long) {
  CALL();
  *graph = reinterpret_cast<CUgraphExec>(new char);
  ++live;
  return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec, CUstream) {
  CALL();
  write("{\"graph\": true}");
  return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) {
  delete reinterpret_cast<char*>(graph);
  --live;
  return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec graph) {
  delete reinterpret_cast<char*>(graph);
  --live;
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* shape, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  CALL();
  // What the driver refuses, as the manual has it.
  if (reinterpret_cast<uintptr_t>(address) % 16 || reinterpret_cast<uintptr_t>(map) % 64) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::string text = "{\"address\": " + std::to_string(reinterpret_cast<uintptr_t>(address));
  const auto list = [&](const char* name, auto* values, unsigned count) {
    text += std::string(", \"") + name + "\": [";
    for (unsigned i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
    text += "]";
  };
  for (unsigned i = 0; i + 1 < rank; ++i) {
    if (strides[i] % 16 || strides[i] >= 1ull << 40) return CUDA_ERROR_INVALID_VALUE;
  }
  for (unsigned i = 0; i < rank; ++i) {
    if (!shape[i] || shape[i] > 1ull << 32 || !box[i] || box[i] > 256) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  list("shape", shape, rank);
  list("strides", strides, rank - 1);
  list("box", box, rank);
  list("steps", steps, rank);
  const int kinds[] = {type, interleave, swizzle, promotion, fill};
  list("kinds", kinds, 5);
  const std::lock_guard<std::mutex> lock(mutex_);
  maps.push_back({text});
  std::memset(map, 0xFF, sizeof *map);
  const uint64_t number = maps.size() - 1;
  std::memcpy(map, &number, sizeof number);
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** values,
                          void** extra) {
  CALL();
  const auto* function = reinterpret_cast<const MockFunction*>(handle);
  if (!current || extra) return CUDA_ERROR_INVALID_CONTEXT;
  if (config->sharedMemBytes > 49152 &&
      static_cast<int>(config->sharedMemBytes) > function->dynamic_shared) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::string text = "{\"launch\": \"" + function->name + "\", \"code\": \"" + function->cubin +
                     "\", \"grid\": [" + std::to_string(config->gridDimX) + ", " +
                     std::to_string(config->gridDimY) + ", " + std::to_string(config->gridDimZ) +
                     "], \"block\": [" + std::to_string(config->blockDimX) + ", " +
                     std::to_string(config->blockDimY) + ", " + std::to_string(config->blockDimZ) +
                     "], \"shared\": " + std::to_string(config->sharedMemBytes) +
                     ", \"attributes\": [";
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    text += (i ? ", [" : "[") + std::to_string(config->attrs[i].id) + ", " +
            std::to_string(config->attrs[i].value.programmaticStreamSerializationAllowed) + "]";
  }
  text += "], \"parameters\": [";
  for (size_t i = 0; i < function->parameters.size(); ++i) {
    const unsigned size = function->parameters[i].size;
    const auto* at = static_cast<const unsigned char*>(values[i]);
    text += i ? ", " : "";
    if (size == 128) {
      const bool patched = !(read<uint64_t>(at + 8) >> 21 & 1);
      text += maps.at(read<uint64_t>(at)).text + (patched ? ", \"patched\": true}" : "}");
    } else {
      uint64_t value = 0;
      std::memcpy(&value, at, size);
      text += "[" + std::to_string(size) + ", " + std::to_string(value) + "]";
    }
  }
  write(text + "]}");
  return CUDA_SUCCESS;
}

}  // extern "C"
