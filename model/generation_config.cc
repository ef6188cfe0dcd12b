#include "model/generation_config.h"

#include <limits>

#include "checkpoint/config_fields.h"
#include "common/file.h"
#include "common/log.h"

namespace moiety {
namespace {

constexpr std::uint64_t kMaxBytes = 16u << 20;

/// Fields of transformers' GenerationConfig with which other tokens are chosen, and the number at
/// which they are not (besides null, false and an empty list).
struct Unsupported {
  std::string_view name;
  double neutral;
};
constexpr Unsupported kUnsupported[] = {
    {"num_beams", 1},
    {"num_beam_groups", 1},
    {"penalty_alpha", 0},
    {"typical_p", 1},
    {"epsilon_cutoff", 0},
    {"eta_cutoff", 0},
    {"top_h", 0},
    {"diversity_penalty", 0},
    {"encoder_repetition_penalty", 1},
    {"no_repeat_ngram_size", 0},
    {"encoder_no_repeat_ngram_size", 0},
    {"bad_words_ids", 0},
    {"force_words_ids", 0},
    {"constraints", 0},
    {"forced_bos_token_id", 0},
    {"forced_eos_token_id", 0},
    {"suppress_tokens", 0},
    {"begin_suppress_tokens", 0},
    {"sequence_bias", 0},
    {"exponential_decay_length_penalty", 0},
    {"guidance_scale", 1},
    {"watermarking_config", 0},
    {"min_new_tokens", 0},
    {"min_length", 0},
};

bool is_neutral(ConfigFields& fields, const Unsupported& field) {
  if (!fields.has(field.name)) return true;
  if (fields.number(field.name, field.neutral, field.neutral)) return true;
  if (const auto flag = fields.flag(field.name, false); flag && !*flag) return true;
  const auto list = fields.texts(field.name);
  return list && list->empty();
}

/// Strings that end a text: one, or a list.
Result<std::vector<std::string>> stop_strings(ConfigFields& fields) {
  static constexpr std::string_view kName = "stop_strings";
  if (!fields.has(kName)) return std::vector<std::string>();
  std::vector<std::string> stops;
  if (const auto one = fields.text(kName, "")) {
    stops.emplace_back(*one);
  } else {
    MOIETY_ASSIGN(stops, fields.texts(kName));
  }
  for (const std::string& stop : stops) {
    if (stop.empty()) {
      return fail(ErrorCode::kInvalidArgument, "stop_strings: holds an empty string: take it out");
    }
  }
  return stops;
}

Result<std::optional<float>> number(ConfigFields& fields,
                                    std::string_view name,
                                    double min,
                                    double max) {
  if (!fields.has(name)) return std::optional<float>();
  MOIETY_ASSIGN(const double value, fields.number(name, min, max));
  return std::optional(static_cast<float>(value));
}

}  // namespace

Result<GenerationDefaults> GenerationDefaults::parse(std::string_view json) {
  MOIETY_ASSIGN(ConfigFields fields, ConfigFields::parse(json));
  GenerationDefaults defaults;
  constexpr double kTiny = std::numeric_limits<float>::min();
  MOIETY_ASSIGN(defaults.temperature, number(fields, "temperature", 0, 100));
  MOIETY_ASSIGN(defaults.top_p, number(fields, "top_p", 0, 1));
  MOIETY_ASSIGN(defaults.min_p, number(fields, "min_p", 0, 1));
  MOIETY_ASSIGN(defaults.repetition_penalty, number(fields, "repetition_penalty", kTiny, 100));
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  if (fields.has("top_k")) {
    MOIETY_ASSIGN(const std::int32_t top_k, fields.integer("top_k", -1, kMost));
    defaults.top_k = top_k < 0 ? 0 : top_k;  // -1, too, is in use for "all"
  }
  if (fields.has("max_new_tokens")) {
    MOIETY_ASSIGN(defaults.max_new_tokens, fields.integer("max_new_tokens", 1, kMost));
  }
  MOIETY_ASSIGN(defaults.stop, stop_strings(fields));
  MOIETY_ASSIGN(const bool samples, fields.flag("do_sample", true));
  if (!samples) defaults.temperature = 0.0f;
  for (const Unsupported& field : kUnsupported) {
    if (!is_neutral(fields, field)) defaults.ignored.emplace_back(field.name);
  }
  return defaults;
}

Result<GenerationDefaults> GenerationDefaults::load(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "generation_config.json";
  if (!entry_exists(file)) return GenerationDefaults{};
  MOIETY_ASSIGN(const std::string text, read_regular_file(file, kMaxBytes));
  auto defaults = parse(text);
  if (!defaults) return with_context(file.string(), defaults.error());
  for (const std::string& field : defaults->ignored) {
    log_warning("{}: {} is not supported and ignored", file.string(), field);
  }
  return defaults;
}

}  // namespace moiety
