#include "cli/generate_jobs.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <random>

#include "router/chat_request.h"
#include "router/field_reader.h"
#include "router/generation_fields.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr std::int32_t kDefaultMaxTokens = 64;

std::uint64_t random_seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

}  // namespace

Result<JobMaker> JobMaker::make(const OfflineModel& offline, std::string deployment) {
  MOIETY_ASSIGN(GenerationDefaults defaults,
                GenerationDefaults::load(offline.checkpoint->folder()));
  if (!defaults.temperature) defaults.temperature = 0.0f;
  return JobMaker(offline, std::move(deployment), std::move(defaults));
}

Result<std::vector<std::int32_t>> JobMaker::encode(std::string_view text,
                                                   bool add_special_tokens) const {
  if (!offline_->tokenizer) {
    return fail(ErrorCode::kFailedPrecondition,
                (offline_->checkpoint->folder() / "tokenizer.json").string() +
                    " does not exist, so text cannot be read: give token ids");
  }
  return offline_->tokenizer->encode(text, add_special_tokens);
}

Result<std::vector<std::int32_t>> JobMaker::encode_chat(json::object variables,
                                                        bool add_special_tokens) {
  if (!chat_template_) {
    const std::filesystem::path& folder = offline_->checkpoint->folder();
    MOIETY_ASSIGN(chat_template_, ChatTemplate::load(folder));
    if (!chat_template_) {
      return fail(ErrorCode::kFailedPrecondition,
                  folder.string() +
                      " has no chat template (chat_template.jinja or the field "
                      "chat_template of tokenizer_config.json): give a prompt");
    }
  }
  variables["add_generation_prompt"] = true;
  const auto text = chat_template_->render(variables);
  if (!text) return with_context("the chat template", text.error());
  return encode(*text, add_special_tokens);
}

Result<GenerateJob> JobMaker::job(const json::object& given, const std::string& where) {
  const auto in_context = [&](Error error) {
    return where.empty() ? error : with_context(where, std::move(error));
  };
  json::object object = given;
  object.emplace("model", "");  // a field of the API, where a server may have several
  FieldReader reader(object);
  const Architecture& arch = offline_->checkpoint->architecture();
  GenerationFields fields = read_generation_fields(reader, arch.vocab_size);
  reader.read("logprobs", 0, kMaxLogprobs, fields.logprobs);
  const json::value* prompt = reader.find("prompt");
  const json::value* ids = reader.find("ids");
  const json::value* messages = reader.find("messages");
  if ((prompt != nullptr) + (ids != nullptr) + (messages != nullptr) != 1)
    reader.fail("prompt", "give exactly one of prompt, ids and messages");
  if (prompt != nullptr && !prompt->is_string()) reader.fail("prompt", "prompt must be a string");
  std::optional<std::vector<std::int32_t>> tokens;
  if (ids != nullptr) {
    if (ids->is_array()) tokens = token_ids(ids->get_array());
    if (!tokens) reader.fail("ids", "ids must be an array of token ids");
  }
  json::object variables;  // of the chat template
  if (messages != nullptr) read_messages(reader, variables);
  bool add_special_tokens = messages == nullptr;  // templates write them themselves
  reader.read("add_special_tokens", add_special_tokens);
  const std::int32_t max_tokens = fields.max_tokens.value_or(kDefaultMaxTokens);
  if (fields.min_tokens > max_tokens) {
    reader.fail("min_tokens",
                fmt::format("min_tokens is {}, but no more than {} tokens are generated",
                            fields.min_tokens, max_tokens));
  }
  if (fields.n != 1) reader.fail("n", "n must be 1: give the prompt several times");
  reader.refuse_unless_neutral("best_of", "1", "give the prompt several times");
  reader.refuse_unless_neutral("echo", "", "only what follows a prompt is printed");
  reader.refuse_unless_neutral("suffix", "", "only what follows a prompt is generated");
  reader.refuse_unread();
  if (reader.error()) return in_context(fail(ErrorCode::kInvalidArgument, reader.error()->message));
  std::vector<std::string> stop = stop_strings(fields, defaults_);
  if (!offline_->tokenizer && !stop.empty()) {
    return in_context(fail(ErrorCode::kInvalidArgument,
                           fields.stop
                               ? "stop: the model has no tokenizer.json; stop_token_ids work"
                               : "stop_strings of generation_config.json need a tokenizer.json: "
                                 "add one, or --stop \"\" for none"));
  }
  if (!tokens) {
    auto encoded = prompt != nullptr
                       ? encode(std::string_view(prompt->get_string()), add_special_tokens)
                       : encode_chat(std::move(variables), add_special_tokens);
    if (!encoded) return in_context(encoded.error());
    tokens = std::move(*encoded);
  }
  GenerateJob job;
  job.request.deployment = deployment_;
  job.request.prompt = std::move(*tokens);
  job.request.sampling =
      sampling_params(fields, defaults_, fields.seed.value_or(random_seed()), arch.eos_ids);
  job.request.max_tokens = max_tokens;
  if (!fields.ignore_eos) job.request.stop_ids = arch.eos_ids;
  job.text = {.stop = std::move(stop),
              .include_stop = fields.include_stop_str_in_output,
              .stop_token_ids = std::move(fields.stop_token_ids),
              .min_tokens = fields.min_tokens,
              .skip_special = fields.skip_special_tokens,
              .keep_tokens = fields.logprobs >= 0};
  return job;
}

Result<std::vector<BatchLine>> parse_batch(std::string_view text,
                                           const std::string& file,
                                           const json::object& defaults) {
  std::vector<BatchLine> lines;
  std::size_t line_number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    BatchLine next{defaults, file + ":" + std::to_string(line_number)};
    json::value value;
    if (const auto wrong = parse_json(line, value))
      return fail(ErrorCode::kInvalidArgument, next.where + ": the line " + *wrong);
    if (!value.is_object())
      return fail(ErrorCode::kInvalidArgument, next.where + ": each line must be a JSON object");
    for (const auto& [key, field] : value.get_object()) next.fields[key] = field;
    lines.push_back(std::move(next));
  }
  if (lines.empty()) return fail(ErrorCode::kInvalidArgument, file + ": has no lines");
  return lines;
}

Result<std::string> read_stdin() {
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (count == 0) return text;
    if (count < 0 && errno == EINTR) {
      if (interrupted()) return interrupted_error();
      continue;
    }
    if (count < 0) {
      return fail(ErrorCode::kIo, std::string("standard input: ") + std::strerror(errno));
    }
    text.append(buffer, static_cast<std::size_t>(count));
  }
}

Result<json::array> parse_ids(const std::string& flag, const std::string& text) {
  json::array ids;
  const auto refuse = [&] {
    return fail(ErrorCode::kInvalidArgument,
                flag + " " + text + ": must be token ids with commas, as in 1,2,3");
  };
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto skip = [&](std::string_view characters) {
    while (at != end && characters.find(*at) != std::string_view::npos) ++at;
  };
  skip(" \t\n[");
  while (at != end && *at != ']') {
    std::int32_t id = -1;
    const auto [stopped, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0) return refuse();
    ids.push_back(id);
    at = stopped;
    skip(" \t\n");
    if (at == end || *at == ']') break;
    if (*at != ',') return refuse();
    ++at;
    skip(" \t\n");
  }
  skip(" \t\n]");
  if (at != end || ids.empty()) return refuse();
  return ids;
}

std::optional<std::uint64_t> parse_seed(std::string_view text) {
  const char* const end = text.data() + text.size();
  std::int64_t with_sign = 0;
  std::uint64_t without = 0;
  const auto whole = [&](auto& number) {
    const auto [stopped, error] = std::from_chars(text.data(), end, number);
    return error == std::errc() && stopped == end;
  };
  if (whole(with_sign)) return static_cast<std::uint64_t>(with_sign);
  if (whole(without)) return without;
  return std::nullopt;
}

Result<json::object> parse_logit_bias(const std::vector<std::string>& entries) {
  json::object biases;
  for (const std::string& entry : entries) {
    const std::size_t equals = entry.find('=');
    double bias = 0;
    bool is_number = false;
    if (equals != std::string::npos) {
      const char* end = entry.data() + entry.size();
      const auto [stopped, error] = std::from_chars(entry.data() + equals + 1, end, bias);
      is_number = error == std::errc() && stopped == end;
    }
    if (!is_number) {
      return fail(ErrorCode::kInvalidArgument,
                  "--logit-bias " + entry + ": must be a token id and a number, as in 42=-100");
    }
    if (!biases.emplace(entry.substr(0, equals), bias).second) {
      return fail(ErrorCode::kInvalidArgument, "--logit-bias " + entry + ": token " +
                                                   entry.substr(0, equals) + " is given twice");
    }
  }
  return biases;
}

}  // namespace moiety::cli
