#include "weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "constants.h"
#include "json.h"
#include "status.h"

namespace ft {
namespace {

constexpr uint64_t kLargestHeader = 1 << 22;  // bytes; those of our files are of some 20 thousand
constexpr int kMostRounds = 64;

struct Expected {
  std::string name;
  std::vector<int64_t> shape;
  bool half;
};

struct Found {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// `TracksTo4D.state_dict()`: names and shapes.
std::vector<Expected> layout(int rounds) {
  std::vector<Expected> all;
  const auto add = [&](const std::string& name, std::vector<int64_t> weight, bool bias, bool half) {
    const int64_t out = weight[0];
    all.push_back({name + ".weight", std::move(weight), half});
    if (bias) all.push_back({name + ".bias", {out}, half});
  };
  const int64_t inner = kHeads * kHeadWidth;
  add("embedding.norm_in", {kFeatures}, true, false);
  add("embedding.linear", {kWidth, kFeatures}, true, false);
  add("embedding.norm_out", {kWidth}, true, false);
  for (int i = 0; i < 2 * rounds; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    add(block + "attention_norm", {kWidth}, true, true);
    add(block + "qkv", {3 * inner, kWidth}, false, true);
    add(block + "out", {kWidth, inner}, false, true);
    add(block + "mlp_norm", {kWidth}, true, true);
    add(block + "up", {kMlpWidth, kWidth}, true, true);
    add(block + "down", {kWidth, kMlpWidth}, true, true);
    // The last tokens, and the norm that makes them, are float32.
    add(block + "norm", {kWidth}, true, i + 1 < 2 * rounds);
  }
  add("camera", {kCameraRows, kWidth, kCameraKernel}, true, false);
  add("points", {kPointRows, kWidth}, true, false);
  return all;
}

int element_bytes(const std::string& dtype) {
  static const std::pair<const char*, int> known[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2},
      {"F16", 2},  {"BF16", 2}, {"I32", 4}, {"U32", 4},     {"F32", 4},     {"I64", 8}, {"U64", 8},
      {"F64", 8}};
  for (const auto& [name, bytes] : known) {
    if (dtype == name) return bytes;
  }
  fail("a tensor of type " + dtype);
}

float from_half(uint16_t bits) {
  if ((bits & 0x7C00) == 0x7C00) return NAN;  // or infinity: neither is wanted
  const uint32_t shifted = (bits & 0x7FFFu) << 13;
  float value;
  std::memcpy(&value, &shifted, 4);
  value *= 0x1p112f;  // the exponents' different offsets; exact, subnormal numbers too
  return bits & 0x8000 ? -value : value;
}

// Rounded to nearest, ties to even, as torch does.
uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = bits >> 16 & 0x8000;
  bits &= 0x7FFFFFFF;
  if (bits >= 0x47800000) return sign | 0x7C00;  // 65536 and more; no NaN comes here
  if (bits < 0x38800000) {                       // subnormal: adding 0.5 rounds at 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | static_cast<uint16_t>(bits - 0x3F000000);
  }
  bits += 0xFFF + (bits >> 13 & 1);
  return sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
}

// Of float types: d F64, f F32, h F16, b BF16; 0 for others.
char letter(const std::string& dtype) {
  return dtype == "F64" ? 'd' : dtype == "F32" ? 'f' : dtype == "F16" ? 'h'
         : dtype == "BF16" ? 'b' : 0;
}

float element(const unsigned char* at, char type) {
  if (type == 'f') {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  if (type == 'd') {
    double value;
    std::memcpy(&value, at, 8);
    return std::isfinite(value) ? static_cast<float>(value) : NAN;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  if (type == 'h') return from_half(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

Found tensor(const Json& info) {
  if (info.kind != Json::kObject || info.fields.size() != 3) fail("a malformed tensor");
  const Json *dtype = info.find("dtype"), *shape = info.find("shape");
  const Json* offsets = info.find("data_offsets");
  if (!dtype || dtype->kind != Json::kString || !shape || shape->kind != Json::kArray ||
      !offsets || offsets->kind != Json::kArray || offsets->items.size() != 2) {
    fail("a malformed tensor");
  }
  Found found{dtype->text, {}, 0, 0};
  for (const Json& size : shape->items) found.shape.push_back(size.whole());
  found.begin = offsets->items[0].whole();
  found.end = offsets->items[1].whole();
  uint64_t bytes = element_bytes(found.dtype);
  for (int64_t size : found.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) fail("a size too large");
  }
  if (found.end < found.begin || found.end - found.begin != bytes) fail("offsets that don't fit");
  return found;
}

// The sizes that the kernels were compiled for; anything else can't be run.
void check_config(const std::string& text, Weights& weights) {
  Json config;
  try {
    config = parse_json(text);
  } catch (const std::runtime_error& problem) {
    fail(std::string("config: ") + problem.what());
  }
  if (config.kind != Json::kObject) fail("config: expected a JSON object");
  const std::pair<const char*, int> sizes[] = {
      {"width", kWidth},           {"heads", kHeads},
      {"head_width", kHeadWidth},  {"mlp_width", kMlpWidth},
      {"frequencies", kFrequencies}, {"bases", kBases},
      {"camera_kernel", kCameraKernel}};
  weights.rounds = 3;
  weights.predicts_focal = false;
  for (const auto& [name, value] : config.fields) {
    const auto* size = std::find_if(std::begin(sizes), std::end(sizes),
                                    [&key = name](const auto& s) { return key == s.first; });
    if (size != std::end(sizes)) {
      if (value.whole() != size->second) {
        fail("config: " + name + " is " + value.text + ", and the kernels are for " +
             std::to_string(size->second));
      }
    } else if (name == "rounds") {
      const long long rounds = value.whole();
      if (rounds < 1 || rounds > kMostRounds) fail("config: expected 1 to 64 rounds");
      weights.rounds = static_cast<int>(rounds);
    } else if (name == "predicts_focal") {
      if (value.kind != Json::kTrue && value.kind != Json::kFalse) {
        fail("config: mistyped predicts_focal");
      }
      weights.predicts_focal = value.kind == Json::kTrue;
    } else if (name == "assumed_focal") {
      if (value.kind != Json::kNumber || value.text.find_first_of(".eE") == std::string::npos) {
        fail("config: mistyped assumed_focal");
      }
      char* end = nullptr;
      const double focal = std::strtod(value.text.c_str(), &end);
      if (!(focal >= 0.01 && focal <= 100)) fail("config: expected assumed_focal from 0.01 to 100");
    } else {
      fail("config: unknown " + name);
    }
  }
}

// Write a tensor as the kernels read it; false where it is not finite.
bool pack(const unsigned char* data, const Found& found, bool half, unsigned char* out) {
  const int width = element_bytes(found.dtype);
  const char type = letter(found.dtype);
  const uint64_t count = (found.end - found.begin) / width;
  const unsigned char* in = data + found.begin;
  bool finite = true;
  if (type == 'h' && half) {
    std::memcpy(out, in, 2 * count);
    for (uint64_t j = 0; j < count; ++j) finite &= (~in[2 * j + 1] & 0x7C) != 0;
    return finite;
  }
  for (uint64_t j = 0; j < count; ++j) {
    const float value = element(in + j * width, type);
    // A float64 beyond float32 is rounded to infinity, as torch does it.
    finite &= std::isfinite(value) || (type == 'd' && std::isinf(value));
    if (half) {
      const uint16_t rounded = to_half(value);
      std::memcpy(out + 2 * j, &rounded, 2);
    } else {
      std::memcpy(out + 4 * j, &value, 4);
    }
  }
  return finite;
}

struct Header {
  std::vector<std::pair<std::string, Found>> tensors;
  std::string config;
  uint64_t data;  // where the tensors begin in the file
};

Header read_header(const unsigned char* data, size_t size) {
  if (size < 8) fail("not a whole safetensors file");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | data[i];
  if (length > kLargestHeader || length > size - 8) fail("not a whole safetensors file");
  if (length == 0 || data[8] != '{') fail("not a safetensors file");
  const Json json = parse_json({reinterpret_cast<const char*>(data) + 8, length});
  Header header{{}, {}, 8 + length};
  bool has_config = false;
  for (const auto& [name, value] : json.fields) {
    if (name != "__metadata__") {
      header.tensors.emplace_back(name, tensor(value));
      continue;
    }
    if (value.kind != Json::kObject) fail("malformed metadata");
    for (const auto& [key, text] : value.fields) {
      if (text.kind != Json::kString) fail("malformed metadata");
      if (key == "config") header.config = text.text, has_config = true;
    }
  }
  if (!has_config) {
    fail("no fasttracks config in its header; released checkpoints are converted with "
         "'fasttracks convert'");
  }
  // One after the other, up to the end of the file.
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (const auto& [name, found] : header.tensors) spans.emplace_back(found.begin, found.end);
  std::sort(spans.begin(), spans.end());
  uint64_t end = 0;
  for (const auto& [first, last] : spans) {
    if (first != end) fail("tensors that overlap, or with gaps");
    end = last;
  }
  if (end != size - header.data) fail("not a whole safetensors file");
  return header;
}

std::string written(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

Weights parse(const unsigned char* data, size_t size) {
  const Header header = read_header(data, size);
  Weights weights{};
  check_config(header.config, weights);
  const std::vector<Expected> expected = layout(weights.rounds);
  for (const auto& [name, found] : header.tensors) {
    if (std::none_of(expected.begin(), expected.end(),
                     [&key = name](const Expected& e) { return e.name == key; })) {
      fail("unexpected " + name);
    }
  }
  uint64_t bytes = 0;
  std::vector<const Found*> sources;
  for (const Expected& want : expected) {
    const auto at = std::find_if(header.tensors.begin(), header.tensors.end(),
                                 [&](const auto& item) { return item.first == want.name; });
    if (at == header.tensors.end()) fail("missing " + want.name);
    const Found& found = at->second;
    if (found.shape != want.shape) {
      fail(want.name + " is " + written(found.shape) + ", expected " + written(want.shape));
    }
    if (!letter(found.dtype)) {
      fail(want.name + " is not of finite floating-point numbers");
    }
    int64_t count = 1;
    for (int64_t n : want.shape) count *= n;
    weights.tensors.push_back({want.name, bytes, static_cast<uint64_t>(count) * (want.half ? 2 : 4)});
    bytes += (weights.tensors.back().bytes + 255) / 256 * 256;
    sources.push_back(&found);
  }
  weights.packed.resize(bytes);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!pack(data + header.data, *sources[i], expected[i].half,
              weights.packed.data() + weights.tensors[i].offset)) {
      fail(expected[i].name + " is not of finite floating-point numbers");
    }
  }
  return weights;
}

// A file's bytes while they are read.
class Mapped {
 public:
  explicit Mapped(const char* path) {
    file_ = open(path, O_RDONLY | O_CLOEXEC);
    if (file_ < 0) fail(std::strerror(errno));
    struct stat about;
    if (fstat(file_, &about) || !S_ISREG(about.st_mode)) {
      close(file_);
      fail("not a file");
    }
    size_ = static_cast<size_t>(about.st_size);
    data_ = size_ ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file_, 0) : nullptr;
    if (data_ == MAP_FAILED) {
      close(file_);
      fail(std::strerror(errno));
    }
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  ~Mapped() {
    if (data_) munmap(data_, size_);
    close(file_);
  }
  const unsigned char* data() const { return static_cast<const unsigned char*>(data_); }
  size_t size() const { return size_; }

 private:
  int file_;
  void* data_;
  size_t size_;
};

}  // namespace

Weights parse_weights(const unsigned char* data, size_t size, const std::string& path) try {
  return parse(data, size);
} catch (const std::runtime_error& problem) {
  throw Error(FT_BAD_WEIGHTS, "weights: " + path + ": " + problem.what());
}

Weights read_weights(const char* path) try {
  const Mapped file(path);
  return parse(file.data(), file.size());
} catch (const std::runtime_error& problem) {
  throw Error(FT_BAD_WEIGHTS, std::string("weights: ") + path + ": " + problem.what());
}

}  // namespace ft
