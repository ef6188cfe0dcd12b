#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/file.h"
#include "common/result.h"

namespace moiety {

inline std::filesystem::path fixture(std::string_view name) {
  return std::filesystem::path(MOIETY_SOURCE_DIR) / "tests/golden/fixtures" / name;
}

/// A folder of its own that is removed with everything in it.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::path(testing::TempDir()) / "moiety-XXXXXX").string();
    const char* made = ::mkdtemp(pattern.data());
    if (made == nullptr) ADD_FAILURE() << "mkdtemp failed";
    path_ = pattern;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// A copy of a fixture that a test may damage.
class FixtureCopy : public TempDir {
 public:
  explicit FixtureCopy(std::string_view name) {
    for (const auto& entry : std::filesystem::directory_iterator(fixture(name))) {
      if (entry.path().filename() == "expected.safetensors") continue;
      std::filesystem::copy_file(entry.path(), path() / entry.path().filename());
    }
  }
};

inline void write_text(const std::filesystem::path& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  ASSERT_TRUE(file.flush()) << path;
}

inline std::string read_text(const std::filesystem::path& path) {
  auto content = read_file(path);
  EXPECT_TRUE(content) << content.error().message;
  return content ? *content : std::string();
}

/// Replaces the one occurrence of `from`.
inline std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << "no " << from << " in " << text;
  if (at != text.npos) text.replace(at, from.size(), to);
  return text;
}

/// The bytes of a safetensors file with this header and `data_bytes` bytes 0, 1, 2, ... of data.
inline std::string safetensors_bytes(std::string_view header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  bytes += header;
  for (std::size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

/// Expects that `result` failed with `code` and a message that matches.
template <class T, class Matcher>
void expect_error(const Result<T>& result, ErrorCode code, const Matcher& message) {
  ASSERT_FALSE(result) << "succeeded";
  EXPECT_EQ(error_info(result.error().code).name, error_info(code).name);
  EXPECT_THAT(result.error().message, message);
}

}  // namespace moiety
