// tokenizer_check FOLDER CASES.jsonl: compares FOLDER/tokenizer.json with the answers that
// tokenizer_oracle.py wrote. Prints the counts and the first differences; exits 1 if there are any.

#include <fmt/format.h>
#include <simdjson.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "common/utf8.h"
#include "model/tokenizer.h"

namespace {

using moiety::StreamDecoder;
using moiety::Tokenizer;

class Report {
 public:
  void expect(bool same,
              std::string_view what,
              std::string_view expected,
              std::string_view actual) {
    ++checks_;
    if (same) return;
    if (++differences_ > 10) return;
    fmt::print(stderr, "{}\n  expected {}\n  actual   {}\n", what, expected.substr(0, 400),
               actual.substr(0, 400));
  }
  long checks() const { return checks_; }
  long differences() const { return differences_; }

 private:
  long checks_ = 0;
  long differences_ = 0;
};

std::string show(std::string_view text) {
  std::string out = "\"";
  for (char c : text.substr(0, 120)) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte == 0x7F ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
  }
  return out + "\"";
}

std::string show(const std::vector<std::int32_t>& ids) {
  return fmt::format("{}", fmt::join(ids, " "));
}

void check_decode(const Tokenizer& tokenizer,
                  const std::vector<std::int32_t>& ids,
                  bool skip_special,
                  std::string_view expected,
                  Report& report) {
  const std::string what = fmt::format("decode (skip_special {}) of {}", skip_special, show(ids));
  const std::string text = tokenizer.decode(ids, skip_special);
  report.expect(text == expected, what, show(expected), show(text));
  StreamDecoder stream(tokenizer, skip_special);
  std::string streamed;
  for (std::int32_t id : ids) {
    const std::string part = stream.push(id);
    report.expect(moiety::is_valid_utf8(part), "part of a character in stream of " + what, "",
                  show(part));
    streamed += part;
  }
  streamed += stream.finish();
  report.expect(streamed == expected, "stream of " + what, show(expected), show(streamed));
}

std::vector<std::int32_t> ids_of(simdjson::dom::array list) {
  std::vector<std::int32_t> ids;
  for (std::int64_t id : list) ids.push_back(static_cast<std::int32_t>(id));
  return ids;
}

int run(const char* folder, const char* cases) {
  const auto tokenizer = Tokenizer::load(folder);
  if (!tokenizer) {
    fmt::print(stderr, "{}\n", tokenizer.error().message);
    return 1;
  }
  Report report;
  long encoded = 0;
  long decoded = 0;
  simdjson::dom::parser parser;
  simdjson::padded_string lines = simdjson::padded_string::load(cases);
  simdjson::dom::document_stream stream = parser.parse_many(lines, 64 << 20);
  for (simdjson::dom::element line : stream) {
    const std::vector<std::int32_t> ids = ids_of(line["ids"]);
    std::string_view text;
    if (line["text"].get(text) == simdjson::SUCCESS) {
      ++encoded;
      const auto actual = *tokenizer->encode(text);
      report.expect(actual == ids, "encode of " + show(text), show(ids), show(actual));
      const auto expected = ids_of(line["template"]);
      const auto whole = *tokenizer->encode(text, true);
      report.expect(whole == expected, "encode with special tokens of " + show(text),
                    show(expected), show(whole));
      continue;
    }
    ++decoded;
    check_decode(*tokenizer, ids, false, line["decoded"].get_string(), report);
    check_decode(*tokenizer, ids, true, line["visible"].get_string(), report);
  }
  fmt::print("{} texts encoded, {} sequences decoded and streamed: {} checks, {} differences\n",
             encoded, decoded, report.checks(), report.differences());
  return report.differences() == 0 && encoded > 0 && decoded > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: tokenizer_check FOLDER CASES.jsonl\n");
    return 2;
  }
  try {
    return run(argv[1], argv[2]);
  } catch (const simdjson::simdjson_error& error) {
    fmt::print(stderr, "{}: {}\n", argv[2], error.what());
    return 1;
  }
}
