#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>

#include "cli/offline.h"
#include "router/engine.h"

namespace moiety::cli {
namespace {

struct GenerateFlags {
  ModelFlags model;
  std::string prompt;
  std::string subset;
  std::int32_t max_tokens = 64;
  float temperature = 0;
  float top_p = 1;
  std::int64_t seed = -1;
  bool ignore_eos = false;
};

Result<void> run_generate(const GenerateFlags& flags) {
  MOIETY_ASSIGN(OfflineModel offline, OfflineModel::load(flags.model, true));
  std::vector<std::pair<std::string, std::filesystem::path>> subsets;
  if (!flags.subset.empty()) subsets.emplace_back("subset", flags.subset);
  MOIETY_ASSIGN(EpochView view, embedded_view(offline.shape, flags.subset.empty(), subsets));
  Engine engine(*offline.model, *offline.experts, {}, nullptr);

  std::mutex mutex;
  std::condition_variable wake;
  bool active = false;
  std::optional<Finish> finish;
  engine.apply(std::move(view), [&](Epoch, std::vector<WorkerId>) {
    const std::lock_guard lock(mutex);
    active = true;
    wake.notify_all();
  });
  {
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return active; });
  }

  GenerateRequest request;
  request.deployment = flags.subset.empty() ? "" : "subset";
  request.prompt = offline.tokenizer->encode(flags.prompt);
  request.sampling = {
      flags.temperature, flags.top_p,
      flags.seed >= 0 ? static_cast<std::uint64_t>(flags.seed) : std::random_device{}()};
  request.max_tokens = flags.max_tokens;
  if (!flags.ignore_eos) request.stop_ids = offline.checkpoint->architecture().eos_ids;
  StreamDecoder decoder(*offline.tokenizer);
  std::string text;
  const auto emit = [&](const std::string& piece) {
    text += piece;
    if (flags.model.json) return;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  const Clock::time_point began = Clock::now();
  std::optional<Clock::time_point> first_token;
  MOIETY_ASSIGN(const Engine::RequestId id,
                engine.submit(std::move(request), {[&](std::int32_t token) {
                                                     if (!first_token) first_token = Clock::now();
                                                     emit(decoder.push(token));
                                                   },
                                                   [&](const Finish& end) {
                                                     const std::lock_guard lock(mutex);
                                                     finish = end;
                                                     wake.notify_all();
                                                   }}));
  {
    std::unique_lock lock(mutex);
    while (!finish) {
      wake.wait_for(lock, std::chrono::milliseconds(100));
      if (interrupted()) engine.cancel(id);
    }
  }
  emit(decoder.finish());
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  const double prefill =
      first_token ? std::chrono::duration<double>(*first_token - began).count() : seconds;
  const double decode_rate = finish->completion_tokens > 1 ? (finish->completion_tokens - 1) /
                                                                 std::max(seconds - prefill, 1e-9)
                                                           : 0;
  if (finish->reason == FinishReason::kError) return finish->error;
  if (flags.model.json) {
    boost::json::object object{{"text", text},
                               {"finish_reason", finish_reason_name(finish->reason)},
                               {"prompt_tokens", finish->prompt_tokens},
                               {"completion_tokens", finish->completion_tokens},
                               {"seconds_to_first_token", prefill},
                               {"decode_tokens_per_second", decode_rate}};
    object["masked_mass"] =
        finish->masked_mass ? boost::json::value(*finish->masked_mass) : nullptr;
    print_json(object);
  } else {
    std::printf("\n");
    std::fprintf(stderr, "%d + %d tokens, first after %.0f ms, then %.1f tokens/s",
                 finish->prompt_tokens, finish->completion_tokens, 1000 * prefill, decode_rate);
    if (!flags.subset.empty() && finish->masked_mass)
      std::fprintf(stderr, ", masked mass %.3f", *finish->masked_mass);
    std::fprintf(stderr, "\n");
  }
  if (finish->reason == FinishReason::kCancelled) return interrupted_error();
  return {};
}

}  // namespace

void add_generate(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("generate", "Continue a prompt in this process, without a server");
  auto flags = std::make_shared<GenerateFlags>();
  flags->model.add_to(*command);
  command->add_option("-p,--prompt", flags->prompt, "Prompt")->required();
  command->add_option("--subset", flags->subset,
                      "Subset file: mask the experts that it leaves out");
  command->add_option("--max-tokens", flags->max_tokens, "Most tokens to generate")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--temperature", flags->temperature, "0 = greedy")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  command->add_option("--top-p", flags->top_p, "Nucleus")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", flags->seed,
                      "The same seed gives the same tokens; random unless given");
  command->add_flag("--ignore-eos", flags->ignore_eos, "Go on after the end-of-text token");
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_generate(*flags); }; });
}

}  // namespace moiety::cli
