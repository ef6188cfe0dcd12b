#include "cli/bench_fabric.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "bench/fabric_bench.h"
#include "cli/bench.h"
#include "cli/named_files.h"
#include "cli/process.h"
#include "cli/run_dir.h"
#include "common/file.h"
#include "common/thread_pool.h"
#include "fabric/mpi/mpi_lane.h"
#include "fabric/ucx/ucx_lane.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr std::chrono::minutes kRunLimit{3};
constexpr const char* kToken = "bench";

/// What one process of the bench is told. It is started by measure_fabrics().
struct PartFlags {
  FabricFlags bench;
  std::string fabric;
  std::filesystem::path dir;  ///< ID.address of each worker, result.json of the router
  std::int32_t worker = -1;   ///< -1: the router
};

std::int32_t fan_out_of(const FabricFlags& flags) {
  return flags.fan_out > 0 ? flags.fan_out : std::min(2, flags.workers);
}

std::filesystem::path address_file(const PartFlags& part, std::int32_t worker) {
  return part.dir / fmt::format("{}.address", worker);
}

Result<void> run_worker_part(const PartFlags& part) {
  const fabric::LaneIdentity identity{static_cast<std::uint64_t>(part.worker), 1, kToken};
  MOIETY_ASSIGN(auto port, part.fabric == "mpi" ? fabric::open_mpi_port(identity)
                                                : fabric::open_ucx_port(identity, "127.0.0.1"));
  MOIETY_TRY(write_file(address_file(part, part.worker), port->address()));
  return bench::serve_stand_in(*port, identity.id, Clock::now() + kRunLimit);
}

Result<std::string> await_address(const PartFlags& part, std::int32_t worker) {
  const Deadline deadline = Clock::now() + std::chrono::seconds(30);
  while (Clock::now() < deadline) {
    if (auto address = read_file(address_file(part, worker)); address) return *address;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return fail(ErrorCode::kDeadlineExceeded, fmt::format("stand-in {} did not start", worker));
}

double at(const std::vector<double>& ascending, double fraction) {
  return ascending[static_cast<std::size_t>(fraction * static_cast<double>(ascending.size() - 1))];
}

Result<json::array> measure_all(const PartFlags& part) {
  const fabric::LaneIdentity identity{1, 0, kToken};
  MOIETY_ASSIGN(auto lane, part.fabric == "mpi" ? fabric::open_mpi_router_lane(identity)
                                                : fabric::open_ucx_router_lane(identity));
  const FabricFlags& flags = part.bench;
  for (std::int32_t worker = 0; worker < flags.workers; ++worker) {
    MOIETY_ASSIGN(const std::string address, await_address(part, worker));
    lane->connect(address, static_cast<std::uint64_t>(worker), 1,
                  Clock::now() + std::chrono::seconds(10));
    const fabric::Event event = lane->wait(Clock::now() + std::chrono::seconds(20));
    if (event.type != fabric::Event::Type::kConnected)
      return fail(ErrorCode::kUnavailable, "a stand-in: " + event.error.message);
  }
  json::array results;
  for (const std::string& tokens : split_commas(flags.tokens)) {
    bench::FabricCase what;
    what.tokens = static_cast<std::int32_t>(std::strtol(tokens.c_str(), nullptr, 10));
    what.hidden_size = flags.hidden_size;
    what.top_k = flags.top_k;
    what.fan_out = fan_out_of(flags);
    MOIETY_ASSIGN(const bench::FabricMeasured measured,
                  bench::measure_fabric(*lane, flags.workers, what, flags.rounds));
    const auto rounds = static_cast<std::uint64_t>(flags.rounds);
    results.push_back(json::object{
        {"fabric", part.fabric},
        {"tokens", what.tokens},
        {"layer_us", at(measured.layer_us, 0.5)},
        {"layer_us_p10", at(measured.layer_us, 0.1)},
        {"layer_us_p90", at(measured.layer_us, 0.9)},
        {"bytes_sent", measured.bytes_sent / rounds},
        {"bytes_received", measured.bytes_received / rounds},
        {"bytes_as_counted", measured.bytes_sent == measured.expected_sent &&
                                 measured.bytes_received == measured.expected_received}});
  }
  bench::dismiss_stand_ins(*lane, static_cast<std::uint64_t>(flags.workers));
  return results;
}

Result<void> run_part(const PartFlags& part) {
  Result<void> outcome;
  if (part.worker >= 0) {
    outcome = run_worker_part(part);
  } else {
    auto results = measure_all(part);
    const json::value written = results
                                    ? json::value(std::move(*results))
                                    : json::value(json::object{{"error", results.error().message}});
    outcome = write_file(part.dir / "result.json", json::serialize(written));
  }
  fabric::end_mpi(0);
  return outcome;
}

std::vector<std::string> part_words(const FabricFlags& flags,
                                    const std::string& fabric,
                                    const std::filesystem::path& dir,
                                    std::int32_t worker) {
  return {"bench",     "fabric-part",
          "--fabric",  fabric,
          "--dir",     dir.string(),
          "--worker",  std::to_string(worker),
          "--workers", std::to_string(flags.workers),
          "--tokens",  flags.tokens,
          "--fan-out", std::to_string(fan_out_of(flags)),
          "--top-k",   std::to_string(flags.top_k),
          "--hidden",  std::to_string(flags.hidden_size),
          "--rounds",  std::to_string(flags.rounds)};
}

/// The processes of one run; ended with it.
class Parts {
 public:
  Parts() = default;
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;
  ~Parts() {
    for (const pid_t pid : pids_) end_process(pid, std::chrono::seconds(3));
  }

  Result<void> start(const FabricFlags& flags,
                     const std::string& fabric,
                     const std::filesystem::path& dir) {
    std::error_code ec;
    const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
    log_ = dir / "log";
    if (fabric != "mpi") {
      for (std::int32_t worker = -1; worker < flags.workers; ++worker)
        MOIETY_TRY(launch(self, part_words(flags, fabric, dir, worker), {}));
      return {};
    }
    std::vector<std::string> words = {"mpirun", "--enable-recovery", "--oversubscribe", "--bind-to",
                                      "none"};
    for (std::int32_t worker = -1; worker < flags.workers; ++worker) {
      if (worker >= 0) words.emplace_back(":");
      words.insert(words.end(), {"-n", "1", self.string()});
      const auto part = part_words(flags, fabric, dir, worker);
      words.insert(words.end(), part.begin(), part.end());
    }
    std::vector<std::pair<std::string, std::string>> environment;
    if (::geteuid() == 0) {
      environment = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"}, {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}};
    }
    return launch("/usr/bin/env", words, environment);
  }

  Result<json::array> await_result(const std::filesystem::path& file) {
    const Deadline deadline = Clock::now() + kRunLimit;
    while (Clock::now() < deadline) {
      if (interrupted()) return interrupted_error();
      std::erase_if(pids_, [](pid_t pid) { return poll_process(pid).has_value(); });
      const bool all_ended = pids_.empty();
      if (const auto text = read_file(file); text) {
        boost::system::error_code failed;
        const json::value value = json::parse(*text, failed);
        if (!failed && value.is_array()) return value.as_array();
        if (!failed && value.is_object())
          return fail(ErrorCode::kInternal, json::value_to<std::string>(value.at("error")));
      }
      if (all_ended) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return fail(ErrorCode::kInternal,
                "the bench's processes ended without a result:\n" + tail(log_, 8));
  }

 private:
  Result<void> launch(const std::filesystem::path& program,
                      const std::vector<std::string>& words,
                      const std::vector<std::pair<std::string, std::string>>& environment) {
    MOIETY_ASSIGN(const pid_t pid,
                  start_process(program, words, environment, log_, Lifetime::kWithUs));
    pids_.push_back(pid);
    return {};
  }

  std::vector<pid_t> pids_;
  std::filesystem::path log_;
};

void add_case_flags(CLI::App& command, FabricFlags& flags) {
  command.add_option("--workers", flags.workers, "Stand-in workers")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command.add_option("--tokens", flags.tokens, "Tokens of a layer, with commas")
      ->capture_default_str();
  command.add_option("--fan-out", flags.fan_out, "Workers that a token goes to; 2 unless given")
      ->check(CLI::Range(1, 64));
  command.add_option("--top-k", flags.top_k, "Experts of a token; a multiple of the fan-out")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command.add_option("--hidden", flags.hidden_size, "Values of a row")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--rounds", flags.rounds, "Layers of each case; medians are printed")
      ->check(CLI::Range(10, 100000))
      ->capture_default_str();
}

Result<void> check_flags(const FabricFlags& flags) {
  if (fan_out_of(flags) > flags.workers)
    return fail(ErrorCode::kInvalidArgument, "--fan-out: there are fewer --workers");
  if (flags.top_k % fan_out_of(flags) != 0)
    return fail(ErrorCode::kInvalidArgument, "--top-k must be a multiple of --fan-out");
  for (const std::string& tokens : split_commas(flags.tokens)) {
    const long count = std::strtol(tokens.c_str(), nullptr, 10);
    if (count < 1 || count > 65536) {
      return fail(ErrorCode::kInvalidArgument,
                  "--tokens " + flags.tokens + ": must be counts from 1 to 65536, with commas");
    }
  }
  return {};
}

}  // namespace

Result<json::array> measure_fabrics(const FabricFlags& flags, bool progress) {
  MOIETY_TRY(check_flags(flags));
  json::array all;
  Progress shown(progress);
  for (const std::string& fabric : flags.fabrics) {
    shown.update("stand-in workers over " + fabric);
    MOIETY_ASSIGN(const ScratchDir scratch, ScratchDir::make("moiety-bench-fabric"));
    Parts parts;
    MOIETY_TRY(parts.start(flags, fabric, scratch.path()));
    auto results = parts.await_result(scratch.path() / "result.json");
    if (interrupted()) return interrupted_error();
    if (!results) {
      all.push_back(json::object{{"fabric", fabric}, {"error", results.error().message}});
      continue;
    }
    for (json::value& each : *results) all.push_back(std::move(each));
  }
  return all;
}

Result<void> check_bytes(const json::array& results) {
  for (const json::value& each : results) {
    const auto* equal = each.as_object().if_contains("bytes_as_counted");
    if (equal != nullptr && !equal->as_bool())
      return fail(ErrorCode::kInternal,
                  json::value_to<std::string>(each.at("fabric")) +
                      ": the lane's bytes are not those of the formats (see above)");
  }
  return {};
}

void print_fabrics(const FabricFlags& flags, const json::array& results) {
  std::printf(
      "What the fabric adds to an MoE layer: dispatch and combine with %d stand-in workers that "
      "compute nothing,\nrows of %d values, fan-out %d, top-%d; median of %d layers, %zu cores\n\n",
      flags.workers, flags.hidden_size, fan_out_of(flags), flags.top_k, flags.rounds,
      available_cores());
  std::printf("%-6s %8s %10s %18s %14s %14s %12s\n", "", "tokens", "us", "p10 to p90", "bytes sent",
              "received", "as counted");
  for (const json::value& each : results) {
    const auto fabric = json::value_to<std::string>(each.at("fabric"));
    if (each.as_object().contains("error")) {
      std::printf("%-6s %s\n", fabric.c_str(),
                  json::value_to<std::string>(each.at("error")).c_str());
      continue;
    }
    const auto number = [&](const char* name) { return each.at(name).to_number<double>(); };
    std::printf("%-6s %8.0f %10.1f %8.1f to %6.1f %14.0f %14.0f %12s\n", fabric.c_str(),
                number("tokens"), number("layer_us"), number("layer_us_p10"),
                number("layer_us_p90"), number("bytes_sent"), number("bytes_received"),
                each.at("bytes_as_counted").as_bool() ? "yes" : "NO");
  }
}

void add_bench_fabric(CLI::App& bench, Chosen& chosen) {
  CLI::App* command = bench.add_subcommand(
      "fabric",
      "Time per MoE layer that sending tokens to workers and back adds, over ucx and mpi, with "
      "stand-in workers that compute nothing");
  auto flags = std::make_shared<FabricFlags>();
  auto as_json = std::make_shared<bool>(false);
  command->add_option("--fabric", flags->fabrics, "ucx, mpi; both unless given")
      ->check(CLI::IsMember({"ucx", "mpi"}));
  add_case_flags(*command, *flags);
  command->add_flag("--json", *as_json, "Print JSON");
  command->callback([flags, as_json, &chosen] {
    chosen.run = [flags, as_json]() -> Result<void> {
      MOIETY_ASSIGN(const json::array results, measure_fabrics(*flags, !*as_json));
      if (*as_json) {
        print_json(json::object{{"command", "moiety bench fabric"},
                                {"version", MOIETY_VERSION},
                                {"cores", available_cores()},
                                {"workers", flags->workers},
                                {"fan_out", fan_out_of(*flags)},
                                {"top_k", flags->top_k},
                                {"hidden_size", flags->hidden_size},
                                {"rounds", flags->rounds},
                                {"results", results}});
      } else {
        print_fabrics(*flags, results);
      }
      return check_bytes(results);
    };
  });

  CLI::App* part = bench.add_subcommand("fabric-part", "One process of `moiety bench fabric`");
  part->group("");  // not listed
  auto part_flags = std::make_shared<PartFlags>();
  part->add_option("--fabric", part_flags->fabric)->required();
  part->add_option("--dir", part_flags->dir)->required();
  part->add_option("--worker", part_flags->worker)->required();
  add_case_flags(*part, part_flags->bench);
  part->callback(
      [part_flags, &chosen] { chosen.run = [part_flags] { return run_part(*part_flags); }; });
}

}  // namespace moiety::cli
