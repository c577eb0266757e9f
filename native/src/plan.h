// The launches of one forward, as the launchers in kernels/ make them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fasttracks.h"
#include "kernels.h"

namespace ft {

struct Shape {
  int64_t clips, frames, tracks;
  bool operator==(const Shape& other) const {
    return clips == other.clips && frames == other.frames && tracks == other.tracks;
  }
};

// An argument of a launch: a number, an address, or a matrix to be read and written by tiles.
struct Argument {
  enum Kind { kAddress, kInt, kLong, kFloat, kMatrix } kind;
  uint64_t address = 0;
  int64_t number = 0;
  float real = 0;
  int rank = 0;
  int64_t shape[3] = {}, strides[3] = {};  // in elements, outermost first
};

struct Step {
  const Kernel* kernel;  // null: a copy of rows
  unsigned programs;
  std::vector<Argument> arguments;
  int stage;  // as ft_debug_run counts them, from 0
  struct {
    uint64_t from, to;
    int64_t from_pitch, width, height;  // bytes, bytes, rows; the target is contiguous
  } copy;
};

struct Region {
  uint64_t address, bytes;
};

struct Plan {
  std::vector<Step> steps;
  std::vector<Region> results;  // by stage
  ft_outputs outputs;
  uint64_t input;  // where the tracks are to be
  uint64_t bytes;  // of memory that is used from `base` on
};

// Addresses of the weights by name, and of the embedding's "rates".
using Addresses = std::map<std::string, uint64_t>;

Plan plan(const Architecture& gpu, int multiprocessors, const Addresses& weights, int rounds,
          bool predicts_focal, Shape shape, uint64_t base);

}  // namespace ft
