#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace moiety {

/// What a checkpoint's generation_config.json recommends for requests that leave a field out. (Its
/// eos_token_id is read with the architecture.)
struct GenerationDefaults {
  /// 0 where the file says do_sample = false, whatever temperature stands beside it.
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<std::int32_t> top_k;  ///< 0 = all
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<std::int32_t> max_new_tokens;
  std::vector<std::string> stop;  ///< stop_strings: a string or a list of them
  /// Fields that would change what is generated and are not taken over, by name.
  std::vector<std::string> ignored;

  /// Of FOLDER/generation_config.json; all empty when there is no such file. A line in the log
  /// names each field that is ignored. kInvalidArgument names the file, the field and what is
  /// understood.
  static Result<GenerationDefaults> load(const std::filesystem::path& folder);
  static Result<GenerationDefaults> parse(std::string_view json);
};

}  // namespace moiety
