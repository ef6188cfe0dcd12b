// tokenizer_speed FOLDER TEXTS.jsonl: encodes all texts once for every line read from standard
// input and prints the processor seconds that it took and the number of tokens. tokenizer_speed.py
// runs it.

#include <fmt/format.h>
#include <simdjson.h>

#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "model/tokenizer.h"

namespace {

double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

int run(const char* folder, const char* file) {
  const auto tokenizer = moiety::Tokenizer::load(folder);
  if (!tokenizer) {
    fmt::print(stderr, "{}\n", tokenizer.error().message);
    return 1;
  }
  std::vector<std::string> texts;
  simdjson::dom::parser parser;
  simdjson::padded_string lines = simdjson::padded_string::load(file);
  simdjson::dom::document_stream stream = parser.parse_many(lines, 64 << 20);
  for (simdjson::dom::element line : stream) texts.emplace_back(std::string_view(line));
  for (int c = 0; (c = std::getchar()) != EOF;) {
    if (c != '\n') continue;
    std::size_t tokens = 0;
    const double start = cpu_seconds();
    for (const std::string& text : texts) tokens += tokenizer->encode(text)->size();
    fmt::print("{:.6f} {}\n", cpu_seconds() - start, tokens);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: tokenizer_speed FOLDER TEXTS.jsonl\n");
    return 2;
  }
  try {
    return run(argv[1], argv[2]);
  } catch (const simdjson::simdjson_error& error) {
    fmt::print(stderr, "{}: {}\n", argv[2], error.what());
    return 1;
  }
}
