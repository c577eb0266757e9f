#include "json.h"

#include <set>
#include <stdexcept>

namespace ft {
namespace {

[[noreturn]] void fail(const char* what) { throw std::runtime_error(what); }

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = parse(0);
    space();
    if (at_ != text_.size()) fail("text after the JSON");
    return value;
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != text_.npos) ++at_;
  }

  bool take(char c) {
    space();
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail("malformed JSON");
  }

  Json parse(int depth) {
    if (depth > 8) fail("JSON nested too deeply");
    space();
    Json value;
    switch (peek()) {
      case '{': {
        ++at_;
        value.kind = Json::kObject;
        if (take('}')) return value;
        std::set<std::string> names;
        do {
          space();
          std::string name = string();
          if (!names.insert(name).second) fail("a key twice in the JSON");
          expect(':');
          value.fields.emplace_back(std::move(name), parse(depth + 1));
        } while (take(','));
        expect('}');
        return value;
      }
      case '[': {
        ++at_;
        value.kind = Json::kArray;
        if (take(']')) return value;
        do {
          value.items.push_back(parse(depth + 1));
        } while (take(','));
        expect(']');
        return value;
      }
      case '"':
        value.kind = Json::kString;
        value.text = string();
        return value;
      case 't': return literal("true", Json::kTrue);
      case 'f': return literal("false", Json::kFalse);
      case 'n': return literal("null", Json::kNull);
      default: return number();
    }
  }

  Json literal(std::string_view word, Json::Kind kind) {
    if (text_.substr(at_, word.size()) != word) fail("malformed JSON");
    at_ += word.size();
    Json value;
    value.kind = kind;
    return value;
  }

  int digits() {
    int count = 0;
    while (peek() >= '0' && peek() <= '9') ++at_, ++count;
    return count;
  }

  Json number() {
    const size_t start = at_;
    if (peek() == '-') ++at_;
    const size_t first = at_;
    const int whole = digits();
    if (!whole || (whole > 1 && text_[first] == '0')) fail("malformed JSON");
    if (peek() == '.') {
      ++at_;
      if (!digits()) fail("malformed JSON");
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) fail("malformed JSON");
    }
    Json value;
    value.kind = Json::kNumber;
    value.text = text_.substr(start, at_ - start);
    return value;
  }

  unsigned hex4() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      if (c >= '0' && c <= '9') code = code * 16 + (c - '0');
      else if (c >= 'a' && c <= 'f') code = code * 16 + (c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') code = code * 16 + (c - 'A' + 10);
      else fail("malformed JSON");
    }
    return code;
  }

  static void append(std::string& out, unsigned code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | code >> 6);
      out += static_cast<char>(0x80 | (code & 63));
    } else if (code < 0x10000) {
      out += static_cast<char>(0xE0 | code >> 12);
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    } else {
      out += static_cast<char>(0xF0 | code >> 18);
      out += static_cast<char>(0x80 | (code >> 12 & 63));
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    }
  }

  std::string string() {
    if (peek() != '"') fail("malformed JSON");
    ++at_;
    std::string out;
    while (true) {
      if (at_ >= text_.size()) fail("malformed JSON");
      const unsigned char c = text_[at_];
      if (c == '"') {
        ++at_;
        return out;
      }
      if (c < 0x20) fail("malformed JSON");
      if (c == '\\') {
        escape(out);
      } else {
        utf8(out);
      }
    }
  }

  void escape(std::string& out) {
    ++at_;
    const char c = peek();
    ++at_;
    switch (c) {
      case '"': case '\\': case '/': out += c; return;
      case 'b': out += '\b'; return;
      case 'f': out += '\f'; return;
      case 'n': out += '\n'; return;
      case 'r': out += '\r'; return;
      case 't': out += '\t'; return;
      case 'u': {
        unsigned code = hex4();
        if (code >= 0xDC00 && code < 0xE000) fail("malformed JSON");
        if (code >= 0xD800 && code < 0xDC00) {
          if (text_.substr(at_, 2) != "\\u") fail("malformed JSON");
          at_ += 2;
          const unsigned low = hex4();
          if (low < 0xDC00 || low >= 0xE000) fail("malformed JSON");
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        append(out, code);
        return;
      }
      default: fail("malformed JSON");
    }
  }

  // One character, which must be whole and in its shortest form.
  void utf8(std::string& out) {
    const unsigned char c = text_[at_];
    const int more = c < 0x80 ? 0 : c >= 0xC2 && c < 0xE0 ? 1 : c >= 0xE0 && c < 0xF0 ? 2
                     : c >= 0xF0 && c < 0xF5 ? 3 : -1;
    if (more < 0 || at_ + more >= text_.size()) fail("text that is not UTF-8");
    unsigned code = more ? c & (0x3F >> more) : c;
    for (int i = 1; i <= more; ++i) {
      const unsigned char next = text_[at_ + i];
      if ((next & 0xC0) != 0x80) fail("text that is not UTF-8");
      code = code << 6 | (next & 0x3F);
    }
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    if ((more == 2 && code < 0x800) || (more == 3 && code < 0x10000) || code > 0x10FFFF ||
        surrogate) {
      fail("text that is not UTF-8");
    }
    out.append(text_.substr(at_, more + 1));
    at_ += more + 1;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view name) const {
  for (const auto& [key, value] : fields) {
    if (key == name) return &value;
  }
  return nullptr;
}

long long Json::whole() const {
  if (kind != kNumber || text.size() > 18 || text.find_first_not_of("0123456789") != text.npos) {
    fail("a number that is not whole, or too large");
  }
  return std::stoll(text);
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace ft
