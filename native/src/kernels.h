// Kernels compiled ahead, as native/generate.py writes them.
#pragma once

#include <cstdint>

namespace ft {

// A tile that the tensor memory accelerator copies: the fields of cuTensorMapEncodeTiled.
struct Tile {
  int swizzle, element_bytes, element_type, rank;
  uint32_t box[5];  // innermost dimension first
};

struct Option {
  const char* name;
  int value;
};

struct Kernel {
  const char* launch;  // name in kernels/launches.json
  int64_t most;        // tokens that it is for
  int variant;         // 1: writes float32 tokens, or corrects the focal length
  Option options[8];
  const char* function;
  const unsigned char *cubin, *cubin_end;
  int shared_bytes, warps, overlaps;
  // Parameters in order: p pointer, i int32, l int64, f float32, d tensor map, then shape and
  // strides; without a map D pointer, shape and strides, then z for each flag, which is off, and s
  // shape and strides again.
  const char* signature;
  Tile tiles[5];  // one for each d

  int option(const char* name) const;
};

struct Architecture {
  int capability;  // 90 for 9.0
  const Kernel* kernels;
  int count;

  // Null where there is no launch of that name.
  const Kernel* find(const char* launch, int64_t tokens, int variant = 0) const;
};

extern const Architecture* const architectures[];
extern const int architecture_count;

}  // namespace ft

// Embed a file, found in the assembler's include path.
#define FT_EMBED(name, file)                                                     \
  extern "C" const unsigned char name[], name##_end[];                          \
  __asm__(".section .rodata, \"a\"\n.balign 16\n.hidden " #name "\n.hidden " #name \
          "_end\n.global " #name "\n.global " #name "_end\n" #name              \
          ":\n.incbin \"" file "\"\n" #name "_end:\n.byte 0\n.previous\n");
