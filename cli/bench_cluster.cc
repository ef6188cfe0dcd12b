#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "cli/bench.h"
#include "cli/bench_fabric.h"
#include "cli/command.h"
#include "cli/embedded_server.h"
#include "cli/local_cluster.h"
#include "cli/named_files.h"
#include "cli/run_dir.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/thread_pool.h"
#include "http/client.h"
#include "kernels/variant.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

struct BenchFlags {
  LocalClusterOptions cluster;
  std::string workers = "1,2,4";
  std::int32_t streams = 16;
  std::int32_t prompt_tokens = 64;
  std::int32_t max_tokens = 64;
  std::int32_t rounds = 5;
  bool json = false;
};

/// A server under test, and what was measured of it.
struct Subject {
  std::string name;
  std::string url;
  pid_t server = -1;                      // answers at url
  std::vector<double> tokens_per_second;  // of each round: prompt and generated tokens
  double layers = 0, wait_us = 0, compute_us = 0, fan_out = 0;  // over all rounds, per layer
  // Payload bytes over all rounds: by the lane's own count, and from the placement.
  double bytes_sent = 0, bytes_received = 0, expected_sent = 0, expected_received = 0;
  bool bytes_as_counted() const {
    return bytes_sent == expected_sent && bytes_received == expected_received;
  }
};

/// The sum of a metric's series on a /metrics page.
double metric(const std::string& page, const std::string& name) {
  double sum = 0;
  for (std::size_t begin = 0; begin < page.size();) {
    const std::size_t end = std::min(page.find('\n', begin), page.size());
    const std::string_view line(page.data() + begin, end - begin);
    begin = end + 1;
    if (!line.starts_with(name) ||
        (line.size() > name.size() && line[name.size()] != ' ' && line[name.size()] != '{')) {
      continue;
    }
    sum += std::strtod(line.data() + line.rfind(' '), nullptr);
  }
  return sum;
}

Result<std::string> metrics_page(const Subject& subject) {
  MOIETY_ASSIGN(http::Response response,
                http::request("GET", subject.url + "/metrics", "", std::chrono::seconds(10)));
  return std::move(response.body);
}

/// One round: all streams at once; tokens (prompt and generated) per second. Ctrl-C kills the
/// server, so that the requests under way fail at once.
Result<double> run_round(const BenchFlags& flags,
                         const Subject& subject,
                         std::int32_t vocab,
                         std::uint64_t seed) {
  std::atomic<std::int64_t> tokens{0};
  std::vector<Result<void>> outcomes(static_cast<std::size_t>(flags.streams));
  std::mutex mutex;
  std::condition_variable wake;
  std::int32_t running = flags.streams;  // guarded by mutex
  std::vector<std::thread> threads;
  const Clock::time_point began = Clock::now();
  for (std::int32_t stream = 0; stream < flags.streams; ++stream) {
    threads.emplace_back([&, stream] {
      std::mt19937_64 random(seed * 1000 + static_cast<std::uint64_t>(stream));
      json::array prompt;
      for (std::int32_t i = 0; i < flags.prompt_tokens; ++i) {
        prompt.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(vocab)));
      }
      const json::object body{{"model", "bench"},
                              {"prompt", prompt},
                              {"max_tokens", flags.max_tokens},
                              {"temperature", 0},
                              {"ignore_eos", true}};
      const auto response = http::request("POST", subject.url + "/v1/completions",
                                          json::serialize(body), std::chrono::seconds(600));
      Result<void>& outcome = outcomes[static_cast<std::size_t>(stream)];
      if (!response) {
        outcome = response.error();
      } else if (response->status != 200) {
        outcome = fail(
            ErrorCode::kInternal,
            subject.name + ": status " + std::to_string(response->status) + ": " + response->body);
      } else {
        tokens += flags.prompt_tokens + flags.max_tokens;
      }
      const std::lock_guard lock(mutex);
      if (--running == 0) wake.notify_all();
    });
  }
  {
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, std::chrono::milliseconds(100), [&] { return running == 0; })) {
      if (interrupted()) ::kill(subject.server, SIGKILL);  // reaped by its owner, after this
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (interrupted()) return interrupted_error();
  for (const Result<void>& outcome : outcomes) MOIETY_TRY(outcome);
  return static_cast<double>(tokens) / std::chrono::duration<double>(Clock::now() - began).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Result<void> run_bench_cluster(const BenchFlags& flags) {
  std::filesystem::path model = flags.cluster.model;
  if (model.empty()) {
    MOIETY_ASSIGN(model, bundled_model());
  }
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(model));
  const std::int32_t vocab = checkpoint.architecture().vocab_size;
  MOIETY_ASSIGN(const kernels::Variant variant, kernels::choose_variant(flags.cluster.kernels));

  // All servers run at once: those that are not measured wait without using the cores.
  MOIETY_ASSIGN(const ScratchDir scratch, ScratchDir::make("moiety-bench"));
  std::vector<Subject> subjects;
  EmbeddedServer embedded;
  MOIETY_ASSIGN(std::string url,
                embedded.start({"--model", model.string(), "--dtype", flags.cluster.dtype,
                                "--kernels", flags.cluster.kernels, "--served-model-name", "bench"},
                               scratch.path() / "embedded.log"));
  subjects.push_back({"embedded", std::move(url), embedded.pid(), {}});
  std::vector<LocalCluster> clusters;
  for (const std::string& count : split_commas(flags.workers)) {
    LocalClusterOptions options = flags.cluster;
    options.model = model;
    options.served_name = "bench";
    options.port = options.admin_port = 0;
    options.workers = static_cast<std::uint32_t>(std::strtoul(count.c_str(), nullptr, 10));
    if (options.workers == 0 || options.workers > 64) {
      return fail(ErrorCode::kInvalidArgument,
                  "--workers " + flags.workers + ": must be counts from 1 to 64, with commas");
    }
    options.run_dir = scratch.path() / count;
    MOIETY_ASSIGN(LocalCluster cluster, LocalCluster::start(options, !flags.json));
    subjects.push_back(
        {"router + " + count, cluster.api_urls().front(), cluster.router_pids().front(), {}});
    clusters.push_back(std::move(cluster));
  }

  std::vector<std::string> before;
  for (Subject& subject : subjects) {
    MOIETY_TRY(run_round(flags, subject, vocab, 0));  // warm-up
    MOIETY_ASSIGN(std::string page, metrics_page(subject));
    before.push_back(std::move(page));
  }
  {
    Progress progress(!flags.json);
    for (std::int32_t round = 1; round <= flags.rounds; ++round) {
      for (Subject& subject : subjects) {
        if (interrupted()) return interrupted_error();
        progress.update("round " + std::to_string(round) + " of " + std::to_string(flags.rounds) +
                        ": " + subject.name);
        MOIETY_ASSIGN(const double rate,
                      run_round(flags, subject, vocab, static_cast<std::uint64_t>(round)));
        subject.tokens_per_second.push_back(rate);
      }
    }
  }
  for (std::size_t i = 0; i < subjects.size(); ++i) {
    Subject& subject = subjects[i];
    MOIETY_ASSIGN(const std::string after, metrics_page(subject));
    const auto delta = [&](const char* name) {
      return metric(after, name) - metric(before[i], name);
    };
    subject.layers = delta("moiety_moe_layers_total");
    if (subject.layers == 0) continue;
    subject.wait_us = 1e6 * delta("moiety_layer_wait_seconds_total") / subject.layers;
    subject.compute_us = 1e6 * delta("moiety_layer_compute_seconds_total") / subject.layers;
    const double copies = delta("moiety_dispatch_row_copies_total");
    subject.fan_out = copies / delta("moiety_dispatch_rows_total");
    subject.bytes_sent = delta("moiety_lane_bytes_total{direction=\"sent\"}");
    subject.bytes_received = delta("moiety_lane_bytes_total{direction=\"received\"}");
    // A dispatch has a head and offsets (20 bytes), an offset and a row for each token that goes to
    // that worker, 8 bytes for each of its experts; fp32 rows come back (docs/protocol.md).
    const double pairs = delta("moiety_expert_tokens_total");
    const double hidden = checkpoint.architecture().hidden_size;
    const double value_bytes = flags.cluster.dtype == "f32" ? 4 : 2;
    subject.expected_sent =
        20 * delta("moiety_dispatches_total") + (4 + value_bytes * hidden) * copies + 8 * pairs;
    subject.expected_received =
        4 * hidden * (flags.cluster.combine == "per_expert" ? pairs : copies);
  }

  const double reference = median(subjects[0].tokens_per_second);
  json::array results;
  if (!flags.json) {
    std::printf("%s, %s, %zu cores; %d streams of %d + %d tokens, median of %d rounds\n\n",
                model.filename().c_str(), std::string(kernels::variant_name(variant)).c_str(),
                available_cores(), flags.streams, flags.prompt_tokens, flags.max_tokens,
                flags.rounds);
    std::printf("%-12s %10s %18s %12s %10s %12s %12s %12s\n", "", "tokens/s", "lowest to highest",
                "of embedded", "fan-out", "layer us", "compute us", "fabric us");
  }
  for (const Subject& subject : subjects) {
    const double rate = median(subject.tokens_per_second);
    const auto [low, high] =
        std::minmax_element(subject.tokens_per_second.begin(), subject.tokens_per_second.end());
    json::object result{{"name", subject.name},
                        {"tokens_per_second", rate},
                        {"lowest", *low},
                        {"highest", *high},
                        {"of_embedded", rate / reference}};
    if (!flags.json) {
      std::printf("%-12s %10.0f %8.0f to %6.0f %11.1f%%", subject.name.c_str(), rate, *low, *high,
                  100 * rate / reference);
    }
    if (subject.layers > 0) {
      result["fan_out"] = subject.fan_out;
      result["layer_wait_us"] = subject.wait_us;
      result["slowest_worker_compute_us"] = subject.compute_us;
      result["fabric_us"] = subject.wait_us - subject.compute_us;
      result["bytes_sent"] = subject.bytes_sent;
      result["bytes_received"] = subject.bytes_received;
      result["bytes_sent_from_placement"] = subject.expected_sent;
      result["bytes_received_from_placement"] = subject.expected_received;
      if (!flags.json) {
        std::printf(" %10.2f %12.1f %12.1f %12.1f", subject.fan_out, subject.wait_us,
                    subject.compute_us, subject.wait_us - subject.compute_us);
      }
    }
    if (!flags.json) std::printf("\n");
    results.push_back(std::move(result));
  }
  if (!flags.json) {
    std::printf("\n%-12s %16s %16s %16s %16s %8s\n", "", "bytes sent", "from placement", "received",
                "from placement", "equal");
    for (const Subject& subject : subjects) {
      if (subject.layers == 0) continue;
      std::printf("%-12s %16.0f %16.0f %16.0f %16.0f %8s\n", subject.name.c_str(),
                  subject.bytes_sent, subject.expected_sent, subject.bytes_received,
                  subject.expected_received, subject.bytes_as_counted() ? "yes" : "NO");
    }
  }
  clusters.clear();  // their processes would share the cores with the stand-ins
  FabricFlags fabric;
  fabric.hidden_size = checkpoint.architecture().hidden_size;
  MOIETY_ASSIGN(const json::array fabrics, measure_fabrics(fabric, !flags.json));
  if (!flags.json) {
    std::printf("\n");
    print_fabrics(fabric, fabrics);
  }
  if (flags.json) {
    print_json(json::object{{"command", "moiety bench cluster"},
                            {"version", MOIETY_VERSION},
                            {"model", model.filename().string()},
                            {"kernels", kernels::variant_name(variant)},
                            {"cores", available_cores()},
                            {"streams", flags.streams},
                            {"prompt_tokens", flags.prompt_tokens},
                            {"max_tokens", flags.max_tokens},
                            {"rounds", flags.rounds},
                            {"fabric", flags.cluster.fabric},
                            {"results", results},
                            {"fabrics", fabrics}});
  }
  MOIETY_TRY(check_bytes(fabrics));
  for (const Subject& subject : subjects) {
    if (subject.layers > 0 && !subject.bytes_as_counted())
      return fail(ErrorCode::kInternal,
                  subject.name + ": the lanes' bytes are not those of the placement (see above)");
  }
  return {};
}

}  // namespace

void add_bench_cluster(CLI::App& bench, Chosen& chosen) {
  CLI::App* command = bench.add_subcommand("cluster",
                                           "Throughput of embedded mode and of a router with 1, "
                                           "2, 4 workers, and what the fabric adds to a layer");
  auto flags = std::make_shared<BenchFlags>();
  command->add_option("-m,--model", flags->cluster.model,
                      "Checkpoint folder; the bundled one unless given");
  command->add_option("--workers", flags->workers, "Fleet sizes to compare")->capture_default_str();
  command->add_option("--fabric", flags->cluster.fabric, "ucx or mpi")
      ->check(CLI::IsMember({"ucx", "mpi"}))
      ->capture_default_str();
  command->add_option("--combine", flags->cluster.combine, "per_worker or per_expert")
      ->check(CLI::IsMember({"per_worker", "per_expert"}))
      ->capture_default_str();
  command->add_option("--kernels", flags->cluster.kernels, "Kernel variant")->capture_default_str();
  command
      ->add_option("--worker-threads", flags->cluster.worker_threads,
                   "Threads of each worker; 0 = cores / workers, at least one")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option("--streams", flags->streams, "Requests at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--prompt-tokens", flags->prompt_tokens, "Prompt length")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command->add_option("--max-tokens", flags->max_tokens, "Generated tokens")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command->add_option("--rounds", flags->rounds, "Rounds per server, interleaved")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print JSON");
  command->callback(
      [flags, &chosen] { chosen.run = [flags] { return run_bench_cluster(*flags); }; });
}

}  // namespace moiety::cli
