// Weights files with all sorts of damage: fuzz_weights FILE COUNT. Built with AddressSanitizer.
// Prints how many were read and how many refused. With COUNT 0 writes the packed weights to stdout.
#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "status.h"
#include "weights.h"

namespace {

std::mt19937 random_(29);

size_t below(size_t n) { return n ? random_() % n : 0; }

const char* const kPieces[] = {"0", "-1", "1e9", "1.5", "18446744073709551615", "4611686018427387904",
                               "\"", "\\", "{", "}", "[", "]", ",", ":", "null", "true", "\"F64\"",
                               "\\u0000", "\\ud800", "\xff", "\xc3", " ", "config", "\"rounds\"",
                               "[[[[[[[[[[[[", "__metadata__", "\"I64\"", "\"BF16\""};

void damage(std::string& header) {
  const size_t at = below(header.size());
  switch (below(6)) {
    case 0: header[at] = static_cast<char>(random_()); break;
    case 1: header[at] ^= static_cast<char>(1 << below(8)); break;
    case 2: header.erase(at, below(64)); break;
    case 3: header.insert(at, header.substr(below(header.size()), below(200))); break;
    case 4: header.insert(at, kPieces[below(std::size(kPieces))]); break;
    default: {  // a number
      const size_t digit = header.find_first_of("0123456789", at);
      if (digit == std::string::npos) return;
      const size_t end = header.find_first_not_of("0123456789", digit);
      header.replace(digit, end - digit, kPieces[below(6)]);
    }
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  std::ifstream file(words[1], std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(file), {}};
  if (std::atoi(words[2]) == 0) {
    const ft::Weights weights = ft::parse_weights(
        reinterpret_cast<const unsigned char*>(all.data()), all.size(), words[1]);
    for (const ft::Weight& each : weights.tensors) {
      std::fwrite(weights.packed.data() + each.offset, 1, each.bytes, stdout);
    }
    return 0;
  }
  uint64_t length;
  std::memcpy(&length, all.data(), 8);
  const std::string original = all.substr(8, length);
  const std::string data = all.substr(8 + length);
  // A header of any length goes right before the tensors, which stay where they are.
  constexpr size_t kRoom = 1 << 20;
  std::vector<unsigned char> memory(kRoom + data.size() + 64);
  std::memcpy(memory.data() + kRoom, data.data(), data.size());
  int read = 0, refused = 0;
  for (int i = 0; i < std::atoi(words[2]); ++i) {
    std::string header = original;
    for (size_t n = below(4); n--;) damage(header);
    if (header.size() + 8 > kRoom) continue;
    uint64_t said = header.size();
    size_t end = kRoom + data.size();
    switch (below(12)) {
      case 0: said = random_(); break;
      case 1: said ^= 1ull << below(64); break;
      case 2: end -= below(data.size()); break;
      case 3: end = kRoom - below(header.size()); break;
      case 4: end += below(64); break;
      default: break;
    }
    unsigned char* begin = memory.data() + kRoom - header.size() - 8;
    std::memcpy(begin, &said, 8);
    std::memcpy(begin + 8, header.data(), header.size());
    if (i % 1000 == 0) end = kRoom - header.size() - below(9);  // not even a length
    const size_t hit = kRoom + below(data.size());
    const unsigned char before = memory[hit];
    if (i % 3 == 0) memory[hit] = 0x7F;  // in a half's upper byte, NaN or infinity
    ASAN_POISON_MEMORY_REGION(memory.data() + end, memory.size() - end);
    try {
      ft::parse_weights(begin, memory.data() + end - begin, "file");
      ++read;
    } catch (const ft::Error& error) {
      if (error.status != FT_BAD_WEIGHTS || !*error.what()) return 1;
      ++refused;
    }
    ASAN_UNPOISON_MEMORY_REGION(memory.data() + end, memory.size() - end);
    memory[hit] = before;
  }
  std::printf("%d %d\n", read, refused);
}
