// JSON, as strict as RFC 8259 and no key twice; for headers of weights files.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ft {

struct Json {
  enum Kind { kNull, kTrue, kFalse, kNumber, kString, kArray, kObject } kind = kNull;
  std::string text;  // of a string, decoded to UTF-8; of a number as written
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;

  const Json* find(std::string_view name) const;
  // Throws std::runtime_error where it is not a whole number within 0 .. 2^62.
  long long whole() const;
};

// Throws std::runtime_error that says what is wrong.
Json parse_json(std::string_view text);

}  // namespace ft
