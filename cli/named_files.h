#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"
#include "planner/subset.h"

namespace moiety::cli {

struct NamedFile {
  std::string name;
  std::filesystem::path file;
};

/// Parses the values of a repeated NAME=FILE flag. kInvalidArgument: no '=', an empty part, or a
/// name given twice.
Result<std::vector<NamedFile>> parse_named_files(const std::string& flag,
                                                 const std::vector<std::string>& values);

/// Splits "a,b,c"; empty parts are left out.
std::vector<std::string> split_commas(const std::string& list);

/// Reads a profile file and selects from it (planner::select_experts); errors name the file.
Result<planner::Subset> select_from_profile(const std::string& file,
                                            const std::vector<std::string>& domains,
                                            std::int32_t keep);

}  // namespace moiety::cli
