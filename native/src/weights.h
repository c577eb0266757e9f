// Weights files: safetensors with the network's sizes in the header, as fasttracks/weights.py
// writes and checks them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ft {

// A weight as the kernels read it: float16 in the blocks but for their last norm, else float32.
struct Weight {
  std::string name;
  uint64_t offset, bytes;  // in `Weights::packed`
};

struct Weights {
  int rounds;
  bool predicts_focal;
  std::vector<Weight> tensors;
  std::vector<unsigned char> packed;
};

// Throws Error (FT_BAD_WEIGHTS).
Weights read_weights(const char* path);

// The same from memory; `path` is for messages.
Weights parse_weights(const unsigned char* data, size_t size, const std::string& path);

}  // namespace ft
