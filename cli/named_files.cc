#include "cli/named_files.h"

#include <algorithm>

namespace moiety::cli {

Result<std::vector<NamedFile>> parse_named_files(const std::string& flag,
                                                 const std::vector<std::string>& values) {
  std::vector<NamedFile> files;
  for (const std::string& value : values) {
    const std::size_t equals = value.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == value.size()) {
      return fail(ErrorCode::kInvalidArgument, flag + " " + value + ": must be NAME=FILE");
    }
    NamedFile file{value.substr(0, equals), value.substr(equals + 1)};
    if (std::any_of(files.begin(), files.end(),
                    [&](const NamedFile& other) { return other.name == file.name; })) {
      return fail(ErrorCode::kInvalidArgument, flag + " " + value + ": the name is given twice");
    }
    files.push_back(std::move(file));
  }
  return files;
}

std::vector<std::string> split_commas(const std::string& list) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    if (end > begin) parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace moiety::cli
