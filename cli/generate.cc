#include <algorithm>
#include <cstdio>
#include <limits>

#include "cli/generate_jobs.h"
#include "cli/generation.h"
#include "common/file.h"
#include "common/flags.h"
#include "router/engine.h"
#include "router/generation_fields.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

struct GenerateFlags {
  ModelFlags model;
  std::optional<std::string> prompt, ids, chat, system, batch;
  std::string subset;
  json::object fields;  // of the request, as the flags say
  std::vector<std::string> stop;
  std::vector<std::string> logit_bias;
  std::optional<std::string> stop_token_ids;
  std::uint64_t kv_cache_bytes = std::uint64_t{512} << 20;
  std::int32_t max_num_seqs = 64;
};

json::array logprobs_json(const Answer& answer, const Tokenizer* tokenizer) {
  const auto token_json = [&](std::int32_t id, float logprob) {
    json::object object{{"id", id}, {"logprob", logprob}};
    if (tokenizer != nullptr) object["token"] = tokenizer->decode({id}, false);
    return object;
  };
  json::array list;
  for (const AnswerToken& token : answer.logprobs) {
    json::object object = token_json(token.sampled.token, token.sampled.logprob);
    json::array& top = object["top"].emplace_array();
    for (const TokenLogprob& other : token.sampled.top)
      top.push_back(token_json(other.token, other.logprob));
    list.push_back(std::move(object));
  }
  return list;
}

json::object answer_json(const Answer& answer,
                         const Tokenizer* tokenizer,
                         const std::string& text) {
  const Finish& finish = *answer.finish;
  if (finish.reason == FinishReason::kError) {
    return {{"error",
             {{"code", error_info(finish.error.code).name}, {"message", finish.error.message}}}};
  }
  json::object object;
  if (tokenizer != nullptr) object["text"] = text;
  object["ids"] = json::array(answer.ids.begin(), answer.ids.end());
  object["finish_reason"] = finish_reason_name(finish.reason);
  if (const auto* stop = std::get_if<std::string>(&answer.stop_reason))
    object["stop_reason"] = *stop;
  if (const auto* stop = std::get_if<std::int32_t>(&answer.stop_reason))
    object["stop_reason"] = *stop;
  object["prompt_tokens"] = finish.prompt_tokens;
  object["completion_tokens"] = finish.completion_tokens;
  if (answer.job.text.keep_tokens) object["logprobs"] = logprobs_json(answer, tokenizer);
  object["masked_mass"] = finish.masked_mass ? json::value(*finish.masked_mass) : nullptr;
  return object;
}

struct Speed {
  double first_token_seconds = 0, prefill_rate = 0, decode_rate = 0;
};

Speed speed_of(const Answer& answer, Clock::time_point began) {
  const auto seconds = [](Clock::duration time) {
    return std::max(std::chrono::duration<double>(time).count(), 1e-9);
  };
  Speed speed;
  if (!answer.first_token) return speed;
  speed.first_token_seconds = seconds(*answer.first_token - began);
  speed.prefill_rate = answer.finish->prompt_tokens / speed.first_token_seconds;
  if (answer.ids.size() > 1) {
    speed.decode_rate = static_cast<double>(answer.ids.size() - 1) /
                        seconds(*answer.last_token - *answer.first_token);
  }
  return speed;
}

Result<void> run_one(Generation& generation,
                     const GenerateFlags& flags,
                     const Tokenizer* tokenizer) {
  std::string text;
  const Clock::time_point began = Clock::now();
  generation.submit(0);
  generation.follow(0, [&](const std::string& piece) {
    text += piece;
    if (flags.model.json) return;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    if (!check_output()) generation.cancel();
  });
  MOIETY_TRY(check_output());
  const Answer& answer = generation.answer(0);
  const Finish& finish = *answer.finish;
  if (finish.reason == FinishReason::kError) return finish.error;
  const Speed speed = speed_of(answer, began);
  if (flags.model.json) {
    json::object object = answer_json(answer, tokenizer, text);
    object["seconds_to_first_token"] = speed.first_token_seconds;
    object["prefill_tokens_per_second"] = speed.prefill_rate;
    object["decode_tokens_per_second"] = speed.decode_rate;
    print_json(object);
  } else {
    std::printf("\n");
    std::fflush(stdout);
    std::fprintf(stderr, "%d + %d tokens, first after %.0f ms (%.1f tokens/s), then %.1f tokens/s",
                 finish.prompt_tokens, finish.completion_tokens, 1000 * speed.first_token_seconds,
                 speed.prefill_rate, speed.decode_rate);
    if (!flags.subset.empty() && finish.masked_mass)
      std::fprintf(stderr, ", masked mass %.3f", *finish.masked_mass);
    std::fprintf(stderr, "\n");
  }
  if (finish.reason == FinishReason::kCancelled) return interrupted_error();
  return {};
}

Result<void> run_batch(Generation& generation, const Tokenizer* tokenizer) {
  const std::size_t count = generation.size();
  const Clock::time_point began = Clock::now();
  for (std::size_t i = 0; i < count; ++i) generation.submit(i);
  std::size_t failed = 0;
  Result<void> written;
  std::int64_t prompt_tokens = 0, completion_tokens = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::string text;
    generation.follow(i, [&](const std::string& piece) { text += piece; });
    const Answer& answer = generation.answer(i);
    if (interrupted() || !written) continue;
    if (answer.finish->reason == FinishReason::kError) ++failed;
    prompt_tokens += answer.finish->prompt_tokens;
    completion_tokens += answer.finish->completion_tokens;
    json::object object{{"index", i}};
    for (auto& [key, value] : answer_json(answer, tokenizer, text)) object[key] = value;
    print_json(object);
    written = check_output();
    if (!written) generation.cancel();
  }
  MOIETY_TRY(written);
  if (interrupted()) return interrupted_error();
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  std::fprintf(stderr, "%zu answers, %lld + %lld tokens in %.2f s, %.1f tokens/s\n", count - failed,
               static_cast<long long>(prompt_tokens), static_cast<long long>(completion_tokens),
               seconds, static_cast<double>(prompt_tokens + completion_tokens) / seconds);
  if (failed > 0) {
    return fail(ErrorCode::kInternal, std::to_string(failed) + " of " + std::to_string(count) +
                                          " requests failed; their lines say why");
  }
  return {};
}

/// Adds what is more than one value to `flags.fields`.
Result<void> read_lists(GenerateFlags& flags) {
  if (flags.stop == std::vector<std::string>{""}) {
    flags.fields["stop"] = json::array();  // not even the checkpoint's
  } else if (!flags.stop.empty()) {
    flags.fields["stop"] = json::array(flags.stop.begin(), flags.stop.end());
  }
  if (!flags.logit_bias.empty()) {
    MOIETY_ASSIGN(json::object biases, parse_logit_bias(flags.logit_bias));
    flags.fields["logit_bias"] = std::move(biases);
  }
  if (flags.stop_token_ids) {
    MOIETY_ASSIGN(json::array ids, parse_ids("--stop-token-ids", *flags.stop_token_ids));
    flags.fields["stop_token_ids"] = std::move(ids);
  }
  return {};
}

/// The jobs that the flags ask for: one, or those of a batch.
Result<std::vector<GenerateJob>> make_jobs(const GenerateFlags& flags, JobMaker& maker) {
  std::vector<GenerateJob> jobs;
  if (flags.batch) {
    std::string text;
    if (*flags.batch == "-") {
      MOIETY_ASSIGN(text, read_stdin());
    } else {
      MOIETY_ASSIGN(text, read_file(*flags.batch));
    }
    const std::string file = *flags.batch == "-" ? "standard input" : *flags.batch;
    MOIETY_ASSIGN(const std::vector<BatchLine> lines, parse_batch(text, file, flags.fields));
    for (const BatchLine& line : lines) {
      MOIETY_ASSIGN(GenerateJob job, maker.job(line.fields, line.where));
      jobs.push_back(std::move(job));
    }
    return jobs;
  }
  json::object fields = flags.fields;
  if (flags.prompt) {
    fields["prompt"] = *flags.prompt;
    if (*flags.prompt == "-") {
      MOIETY_ASSIGN(const std::string text, read_stdin());
      fields["prompt"] = text;
    }
  } else if (flags.ids) {
    MOIETY_ASSIGN(json::array ids, parse_ids("--ids", *flags.ids));
    fields["ids"] = std::move(ids);
  } else if (flags.chat) {
    json::array& messages = fields["messages"].emplace_array();
    if (flags.system)
      messages.push_back(json::object{{"role", "system"}, {"content", *flags.system}});
    messages.push_back(json::object{{"role", "user"}, {"content", *flags.chat}});
  } else {
    return fail(ErrorCode::kInvalidArgument,
                "generate needs one of --prompt, --ids, --chat and --batch");
  }
  MOIETY_ASSIGN(GenerateJob job, maker.job(fields, ""));
  jobs.push_back(std::move(job));
  return jobs;
}

Result<void> run_generate(GenerateFlags& flags) {
  MOIETY_TRY(read_lists(flags));
  if (flags.fields.contains("logprobs") && !flags.model.json && !flags.batch) {
    return fail(ErrorCode::kInvalidArgument,
                "--logprobs: log-probabilities are printed with --json or --batch only");
  }
  const bool has_tokenizer = entry_exists(flags.model.model / "tokenizer.json");
  const bool needs_tokenizer = flags.prompt || flags.chat;
  MOIETY_ASSIGN(OfflineModel offline,
                OfflineModel::load(flags.model, has_tokenizer || needs_tokenizer));
  std::vector<std::pair<std::string, std::filesystem::path>> subsets;
  if (!flags.subset.empty()) subsets.emplace_back("subset", flags.subset);
  MOIETY_ASSIGN(EpochView view, embedded_view(offline.shape, flags.subset.empty(), subsets));
  MOIETY_ASSIGN(JobMaker maker, JobMaker::make(offline, flags.subset.empty() ? "" : "subset"));
  MOIETY_ASSIGN(std::vector<GenerateJob> jobs, make_jobs(flags, maker));

  EngineOptions options;
  options.max_queue = static_cast<std::int32_t>(jobs.size());
  options.max_num_seqs = flags.max_num_seqs;
  options.kv_cache_bytes = flags.kv_cache_bytes;
  Engine engine(*offline.model, *offline.experts, options, nullptr);
  activate(engine, std::move(view));
  const Tokenizer* tokenizer = offline.tokenizer ? &*offline.tokenizer : nullptr;
  Generation generation(engine, tokenizer, std::move(jobs));
  return flags.batch ? run_batch(generation, tokenizer) : run_one(generation, flags, tokenizer);
}

/// A flag that becomes a field of the request when it is given.
template <class T>
CLI::Option* add_field(CLI::App& command,
                       const std::shared_ptr<GenerateFlags>& flags,
                       const std::string& flag,
                       const char* field,
                       const std::string& description) {
  return command.add_option_function<T>(
      flag, [flags, field](const T& value) { flags->fields[field] = value; }, description);
}

void add_sampling_flags(CLI::App& command, const std::shared_ptr<GenerateFlags>& flags) {
  add_field<std::int32_t>(command, flags, "--max-tokens", "max_tokens",
                          "Most tokens to generate; 64 unless given")
      ->check(CLI::Range(1, kMostTokens));
  add_field<std::int32_t>(command, flags, "--min-tokens", "min_tokens",
                          "Least tokens before an end of text or a stop counts")
      ->check(CLI::Range(0, kMostTokens));
  add_field<double>(command, flags, "--temperature", "temperature",
                    "0 = greedy; generation_config.json's unless given, or else 0")
      ->check(CLI::Range(0.0, 2.0));
  add_field<double>(command, flags, "--top-p", "top_p", "Nucleus: of the most probable tokens")
      ->check(CLI::Range(0.0, 1.0));
  add_field<std::int32_t>(command, flags, "--top-k", "top_k", "The k most probable tokens; 0 = all")
      ->check(CLI::Range(-1, std::numeric_limits<std::int32_t>::max()));
  add_field<double>(command, flags, "--min-p", "min_p",
                    "Drops tokens less probable than this share of the most probable one")
      ->check(CLI::Range(0.0, 1.0));
  add_field<double>(command, flags, "--repetition-penalty", "repetition_penalty",
                    "Above 1: less of the tokens of prompt and answer")
      ->check(CLI::Range(0.01, 100.0));
  add_field<double>(command, flags, "--presence-penalty", "presence_penalty",
                    "Subtracted once from tokens of the answer")
      ->check(CLI::Range(-2.0, 2.0));
  add_field<double>(command, flags, "--frequency-penalty", "frequency_penalty",
                    "Subtracted for each occurrence in the answer")
      ->check(CLI::Range(-2.0, 2.0));
  CLI::Option* seed = command.add_option_function<std::string>(
      "--seed",
      [flags](const std::string& text) {
        const auto seed = parse_seed(text);
        if (!seed) throw CLI::ValidationError("--seed", text + " is no whole number of 64 bits");
        flags->fields["seed"] = *seed;
      },
      "The same seed gives the same tokens; random unless given");
  seed->type_name("INT");
  command
      .add_option("--logit-bias", flags->logit_bias,
                  "ID=BIAS, -100 to 100: added to the token's logit; several: repeat the flag")
      ->allow_extra_args(false);
  command
      .add_option("--stop", flags->stop,
                  "End before this text; several: repeat the flag; generation_config.json's "
                  "stop_strings unless given, \"\" = none")
      ->allow_extra_args(false);
  command.add_option("--stop-token-ids", flags->stop_token_ids, "End before these tokens: 1,2,3");
  add_field<std::int32_t>(command, flags, "--logprobs", "logprobs",
                          "Log-probabilities of the tokens and of so many alternatives")
      ->check(CLI::Range(0, kMaxLogprobs));
  command.add_flag_callback(
      "--ignore-eos", [flags] { flags->fields["ignore_eos"] = true; },
      "Go on after the end-of-text token");
  command.add_flag_callback(
      "--show-special", [flags] { flags->fields["skip_special_tokens"] = false; },
      "Special tokens are part of the text");
}

}  // namespace

void add_generate(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("generate", "Continue prompts in this process, without a server");
  auto flags = std::make_shared<GenerateFlags>();
  flags->model.add_to(*command);
  CLI::Option* prompt =
      command->add_option("-p,--prompt", flags->prompt, "Prompt; - reads it from standard input");
  CLI::Option* ids = command->add_option("--ids", flags->ids, "Prompt as token ids: 1,2,3");
  CLI::Option* chat =
      command->add_option("--chat", flags->chat, "A user's message, for the model's chat template");
  CLI::Option* batch = command->add_option(
      "--batch", flags->batch,
      "File of JSON objects, one a line (- = standard input), with prompt, ids or messages, and "
      "any field of a completion request; answers are JSON lines in the same order");
  prompt->excludes(ids)->excludes(chat)->excludes(batch);
  ids->excludes(chat)->excludes(batch);
  chat->excludes(batch);
  command->add_option("--system", flags->system, "System message before that of --chat")
      ->needs(chat);
  command->add_option("--subset", flags->subset,
                      "Subset file: mask the experts that it leaves out");
  add_sampling_flags(*command, flags);
  command->add_option("--max-num-seqs", flags->max_num_seqs, "Most requests in one step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--kv-cache-bytes", flags->kv_cache_bytes, "Memory for the KV cache")
      ->transform(as_bytes())
      ->capture_default_str();
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_generate(*flags); }; });
}

}  // namespace moiety::cli
