#include "kernels.h"

#include <cstring>
#include <string>

#include "status.h"

namespace ft {

int Kernel::option(const char* name) const {
  for (const Option& option : options) {
    if (option.name && !std::strcmp(option.name, name)) return option.value;
  }
  throw Error(FT_INTERNAL, std::string(launch) + " has no option " + name);
}

const Kernel* Architecture::find(const char* launch, int64_t tokens, int variant) const {
  for (int i = 0; i < count; ++i) {  // sorted by name, then by most tokens
    const Kernel& kernel = kernels[i];
    if (!std::strcmp(kernel.launch, launch) && tokens <= kernel.most && kernel.variant == variant) {
      return &kernel;
    }
  }
  return nullptr;
}

}  // namespace ft
