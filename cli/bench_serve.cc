#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "bench/engine_bench.h"
#include "bench/http_load.h"
#include "cli/bench.h"
#include "cli/bench_model.h"
#include "cli/embedded_server.h"
#include "cli/run_dir.h"
#include "common/ids.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

struct ServeFlags {
  BenchModel model;
  bench::HttpLoadOptions load;
  std::int32_t rounds = 3;
};

/// Looks for Ctrl-C while requests are under way: ends the server (if it is ours), so that they
/// fail at once.
class InterruptWatch {
 public:
  explicit InterruptWatch(pid_t server)
      : thread_([this, server](const std::stop_token& token) {
          while (!token.stop_requested()) {
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            if (!interrupted() || stop_.exchange(true)) continue;
            if (server > 0) ::kill(server, SIGKILL);  // reaped by its owner
          }
        }) {}
  const std::atomic<bool>& stop() const { return stop_; }

 private:
  std::atomic<bool> stop_{false};
  std::jthread thread_;
};

struct Rounds {
  std::vector<double> rates, predicted, fractions, first_token, gaps;
};

const char* expert_dtype_name(const ModelFlags& flags) {
  switch (flags.expert_dtype.value_or(flags.dtype)) {
    case DType::kI8:
      return "int8";
    case DType::kF32:
      return "f32";
    default:
      return "bf16";
  }
}

/// What prefill and decode alone predict for one round, in tokens per second.
double predicted_rate(const bench::EngineReport& report, const bench::HttpLoadOptions& load) {
  const bench::EngineMeasurement& prefill = report.cases[0];
  const bench::EngineMeasurement& decode = report.cases[1];
  const double per_prompt_token = prefill.seconds.back() / prefill.tokens;
  const double per_token = decode.seconds.back() / decode.tokens;
  return (load.prompt_tokens + load.max_tokens) /
         (load.prompt_tokens * per_prompt_token + load.max_tokens * per_token);
}

json::object percentiles_json(const std::vector<double>& values) {
  return {{"p50", 1e3 * bench::percentile(values, 0.5)},
          {"p90", 1e3 * bench::percentile(values, 0.9)},
          {"p99", 1e3 * bench::percentile(values, 0.99)}};
}

void print_percentiles(const char* name, const std::vector<double>& values) {
  std::printf("%-26s %9.1f %9.1f %9.1f ms\n", name, 1e3 * bench::percentile(values, 0.5),
              1e3 * bench::percentile(values, 0.9), 1e3 * bench::percentile(values, 0.99));
}

void print_report(const ServeFlags& flags,
                  const bench::EngineReport& engine,
                  const Rounds& rounds,
                  const std::string& head) {
  const bench::HttpLoadOptions& load = flags.load;
  const double rate = bench::median(rounds.rates);
  if (flags.model.model.json) {
    print_json(json::object{
        {"command", "moiety bench serve"},
        {"version", MOIETY_VERSION},
        {"cpu", bench::cpu_name()},
        {"model", flags.model.name()},
        {"streams", load.streams},
        {"requests_per_stream", load.requests},
        {"prompt_tokens", load.prompt_tokens},
        {"max_tokens", load.max_tokens},
        {"rounds", flags.rounds},
        {"tokens_per_second", rate},
        {"prefill_tokens_per_second", bench::median(engine.cases[0].rates())},
        {"decode_tokens_per_second", bench::median(engine.cases[1].rates())},
        {"predicted_tokens_per_second", bench::median(rounds.predicted)},
        {"fraction_of_predicted", bench::median(rounds.fractions)},
        {"lowest_fraction", *std::min_element(rounds.fractions.begin(), rounds.fractions.end())},
        {"highest_fraction", *std::max_element(rounds.fractions.begin(), rounds.fractions.end())},
        {"first_token_ms", percentiles_json(rounds.first_token)},
        {"gap_ms", percentiles_json(rounds.gaps)}});
    return;
  }
  std::printf("%s\n%d streams, %d requests of %d + %d tokens each, median of %d rounds\n\n",
              head.c_str(), load.streams, load.requests, load.prompt_tokens, load.max_tokens,
              flags.rounds);
  std::printf("over HTTP                  %9.1f tokens/s (prompt and generated)\n", rate);
  std::printf("predicted                  %9.1f tokens/s: prefill %.1f, decode at B = %d %.1f\n",
              bench::median(rounds.predicted), bench::median(engine.cases[0].rates()), load.streams,
              bench::median(engine.cases[1].rates()));
  std::printf("of what is predicted       %8.1f%%  (%.1f%% to %.1f%%)\n\n",
              100 * bench::median(rounds.fractions),
              100 * *std::min_element(rounds.fractions.begin(), rounds.fractions.end()),
              100 * *std::max_element(rounds.fractions.begin(), rounds.fractions.end()));
  std::printf("%-26s %9s %9s %9s\n", "", "50%", "90%", "99%");
  print_percentiles("first token after", rounds.first_token);
  print_percentiles("between pieces of text", rounds.gaps);
}

Result<void> run_bench_serve(ServeFlags flags) {
  MOIETY_TRY(flags.model.prepare());
  const ModelFlags& model_flags = flags.model.model;
  MOIETY_ASSIGN(const ScratchDir scratch, ScratchDir::make("moiety-bench"));
  EmbeddedServer server;
  const bool ours = flags.load.url.empty();
  if (ours) {
    flags.load.model = "bench";
    std::vector<std::string> server_flags = {"--model",
                                             model_flags.model.string(),
                                             "--dtype",
                                             model_flags.dtype == DType::kF32 ? "f32" : "bf16",
                                             "--kernels",
                                             model_flags.kernels,
                                             "--threads",
                                             std::to_string(model_flags.threads),
                                             "--served-model-name",
                                             "bench"};
    if (model_flags.expert_dtype) {
      server_flags.insert(server_flags.end(), {"--expert-dtype", expert_dtype_name(model_flags)});
    }
    MOIETY_ASSIGN(flags.load.url, server.start(server_flags, scratch.path() / "serve.log"));
  }
  MOIETY_ASSIGN(OfflineModel offline, OfflineModel::load(model_flags, false));
  flags.load.vocab_size = offline.model->architecture().vocab_size;
  bench::MachineLimits limits(offline.pool->num_threads(), offline.model->dtype() != DType::kF32);
  limits.read_weights();
  bench::EngineBenchOptions options;
  options.batches = {flags.load.streams};
  options.context = 0;
  options.seed = flags.model.seed;
  const std::int32_t context = offline.model->architecture().max_positions;
  options.prompt_tokens = std::min(options.prompt_tokens, context / 2);

  Rounds rounds;
  std::optional<bench::EngineBench> engine;
  {
    Progress progress(!model_flags.json);
    MOIETY_ASSIGN(engine,
                  bench::EngineBench::make(*offline.model, *offline.experts, offline.store->dtype(),
                                           options, limits, [&](const std::string& what) {
                                             progress.update(what);
                                             return !interrupted();
                                           }));
    const InterruptWatch watch(ours ? server.pid() : -1);
    for (std::int32_t round = 0; round <= flags.rounds; ++round) {  // the first warms up
      MOIETY_TRY(engine->run());
      const double before = predicted_rate(engine->report(), flags.load);
      progress.update("round " + std::to_string(round) + " of " + std::to_string(flags.rounds) +
                      ": " + std::to_string(flags.load.streams) + " streams over HTTP");
      flags.load.seed = flags.model.seed * 1000 + static_cast<std::uint64_t>(round);
      MOIETY_ASSIGN(const bench::HttpLoadResult seen,
                    bench::run_http_load(flags.load, watch.stop()));
      if (round == 0) continue;
      MOIETY_TRY(engine->run());
      const double after = predicted_rate(engine->report(), flags.load);
      rounds.rates.push_back(seen.tokens_per_second());
      rounds.predicted.push_back((before + after) / 2);
      rounds.fractions.push_back(rounds.rates.back() / rounds.predicted.back());
      rounds.first_token.insert(rounds.first_token.end(), seen.first_token_seconds.begin(),
                                seen.first_token_seconds.end());
      rounds.gaps.insert(rounds.gaps.end(), seen.gap_seconds.begin(), seen.gap_seconds.end());
    }
  }
  const std::string variant(kernels::variant_name(offline.model->variant()));
  print_report(flags, engine->report(), rounds,
               flags.model.name() + ", " + std::string(dtype_name(offline.model->dtype())) + ", " +
                   variant + " kernels, " + std::to_string(offline.pool->num_threads()) +
                   " threads, " + bench::cpu_name());
  return {};
}

}  // namespace

void add_bench_serve(CLI::App& bench, Chosen& chosen) {
  CLI::App* command = bench.add_subcommand(
      "serve",
      "Streams that ask an HTTP server again and again, and the share of what the engine's own "
      "prefill and decode rates, measured in turns, predict");
  auto flags = std::make_shared<ServeFlags>();
  flags->model.add_to(*command);
  CLI::Option* url =
      command->add_option("--url", flags->load.url,
                          "A server of the same model; `moiety serve` is started unless given");
  command->add_option("--served-model-name", flags->load.model, "The model's name at --url")
      ->needs(url);
  url->needs(command->get_option("--served-model-name"));
  command->add_option("--streams", flags->load.streams, "Requests at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--requests", flags->load.requests, "Requests of each stream in a round")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--prompt-tokens", flags->load.prompt_tokens, "Prompt length")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command->add_option("--max-tokens", flags->load.max_tokens, "Generated tokens")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command->add_option("--rounds", flags->rounds, "Rounds, in turns with the engine alone")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_bench_serve(*flags); }; });
}

}  // namespace moiety::cli
