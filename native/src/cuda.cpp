#include "cuda.h"

#include <dlfcn.h>

#include <string>

namespace ft::cuda {

namespace {

void check_in(const Driver& driver, Result result, const char* what) {
  if (result == 0) return;
  const char* name = nullptr;
  driver.cuGetErrorName(result, &name);
  throw Error(result == kOutOfMemory ? FT_OUT_OF_MEMORY : FT_CUDA_ERROR,
              std::string(what) + ": " + (name ? name : "unknown CUDA error"));
}

Driver open() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    throw Error(FT_NO_DRIVER,
                "no CUDA driver: libcuda.so.1 was not found; expected an NVIDIA GPU's driver");
  }
  Driver found;
#define FT_OPEN(name, ...)                                                             \
  found.name = reinterpret_cast<Result (*)(__VA_ARGS__)>(dlsym(library, #name));       \
  if (!found.name) {                                                                   \
    throw Error(FT_NO_DRIVER, "the CUDA driver is too old: it has no " #name           \
                              "; expected one for CUDA 12.0 or newer");                \
  }
  FT_CUDA_FUNCTIONS(FT_OPEN)
#undef FT_OPEN
  if (Result result = found.cuInit(0)) {
    const char* name = nullptr;
    found.cuGetErrorName(result, &name);
    throw Error(result == kNoDevice ? FT_NO_DEVICE : FT_NO_DRIVER,
                std::string("the CUDA driver does not start: ") + (name ? name : "unknown error"));
  }
  check_in(found, found.cuDriverGetVersion(&found.version), "cuDriverGetVersion");
  return found;
}

}  // namespace

const Driver& driver() {
  static const Driver opened = open();  // tried again by the next call if it throws
  return opened;
}

void check(Result result, const char* what) { check_in(driver(), result, what); }

}  // namespace ft::cuda
