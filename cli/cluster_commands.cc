#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <optional>
#include <thread>

#include "cli/admin_client.h"
#include "cli/command.h"
#include "cli/named_files.h"
#include "cli/operation.h"
#include "cli/up.h"
#include "common/file.h"
#include "common/flags.h"
#include "common/ids.h"
#include "http/wire.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr std::chrono::seconds kDownTimeout{60};

struct AdminFlags {
  std::string admin = "http://127.0.0.1:8001";
  bool json = false;
  void add_to(CLI::App& command) {
    command.add_option("--admin", admin, "Coordinator's admin address")
        ->envname("MOIETY_ADMIN")
        ->capture_default_str();
    command.add_flag("--json", json, "Print JSON");
  }
};

/// Shows the status again and again, in place, until Ctrl-C. A coordinator that is away for a while
/// is said to be.
Result<void> watch_status(const AdminFlags& flags, double interval_s) {
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  const AdminClient admin(flags.admin);
  for (bool first = true; !interrupted(); first = false) {
    const auto status = admin.call("GET", "/v1/status");
    if (!status && first) return status.error();
    if (flags.json) {
      if (status) print_json(*status);
    } else {
      if (terminal) std::cout << "\033[H\033[J";
      std::cout << (status ? format_status(*status) : status.error().message + "\n") << std::endl;
    }
    MOIETY_TRY(check_output());
    const Deadline next =
        Clock::now() + std::chrono::milliseconds(static_cast<std::int64_t>(1000 * interval_s));
    while (!interrupted() && Clock::now() < next)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return {};
}

void add_status(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "status", "Show a running cluster: fleet, epochs, memory, deployments, groups, load, losses");
  struct Flags {
    AdminFlags admin;
    bool watch = false;
    double interval_s = 1;
  };
  auto flags = std::make_shared<Flags>();
  flags->admin.add_to(*command);
  command->add_flag("-w,--watch", flags->watch, "Show it again and again, until Ctrl-C");
  command->add_option("--interval", flags->interval_s, "Seconds between two, with --watch")
      ->check(number_in(0.1, 3600))
      ->capture_default_str();
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      if (flags->watch) return watch_status(flags->admin, flags->interval_s);
      MOIETY_ASSIGN(const json::value status,
                    AdminClient(flags->admin.admin).call("GET", "/v1/status"));
      if (flags->admin.json) {
        print_json(status);
      } else {
        std::cout << format_status(status);
      }
      return {};
    };
  });
}

struct DeployFlags {
  AdminFlags admin;
  std::string name;
  std::string subset;
  std::string profile;
  std::string domains;
  std::int32_t keep = 0;
  bool full = false;
  std::string on_missing;
};

/// "NAME=FILE[,on_missing=POLICY]" as `up` takes it; a plain NAME stays as it is.
Result<void> split_name(DeployFlags& flags) {
  const std::size_t equals = flags.name.find('=');
  if (equals == std::string::npos) return {};
  if (!flags.subset.empty()) {
    return fail(ErrorCode::kInvalidArgument,
                flags.name + " and --subset " + flags.subset + ": give one subset file");
  }
  flags.subset = flags.name.substr(equals + 1);
  flags.name.erase(equals);
  static constexpr std::string_view kOnMissing = ",on_missing=";
  if (const std::size_t at = flags.subset.rfind(kOnMissing); at != std::string::npos) {
    if (!flags.on_missing.empty()) {
      return fail(ErrorCode::kInvalidArgument,
                  flags.name + ",... and --on-missing " + flags.on_missing + ": give one of them");
    }
    flags.on_missing = flags.subset.substr(at + kOnMissing.size());
    flags.subset.erase(at);
  }
  return {};
}

Result<void> run_deploy(DeployFlags flags) {
  MOIETY_TRY(split_name(flags));
  if ((flags.subset.empty() ? 0 : 1) + (flags.profile.empty() ? 0 : 1) + (flags.full ? 1 : 0) !=
      1) {
    return fail(
        ErrorCode::kInvalidArgument,
        "deploy needs one of --subset FILE, --profile FILE with --domains and --keep, or --full");
  }
  if (flags.profile.empty() && (!flags.domains.empty() || flags.keep != 0)) {
    return fail(ErrorCode::kInvalidArgument,
                "--domains and --keep select from a profile: give --profile FILE with them");
  }
  json::object body{{"name", flags.name}};
  if (!flags.on_missing.empty()) body["on_missing"] = flags.on_missing;
  if (flags.full) {
    body["full"] = true;
  } else {
    std::string subset;
    if (!flags.subset.empty()) {
      MOIETY_ASSIGN(subset, read_file(flags.subset));
      if (auto parsed = planner::parse_subset(subset); !parsed) {
        return with_context(flags.subset, parsed.error());
      }
    } else {
      if (flags.domains.empty() || flags.keep == 0) {
        return fail(ErrorCode::kInvalidArgument,
                    "deploy --profile also needs --domains A[,B] and --keep K");
      }
      MOIETY_ASSIGN(const planner::Subset selected,
                    select_from_profile(flags.profile, split_commas(flags.domains), flags.keep));
      subset = planner::subset_to_json(selected);
    }
    boost::system::error_code ec;
    body["subset"] = json::parse(subset, ec);
    if (ec)
      return fail(ErrorCode::kInvalidArgument,
                  flags.subset + ": is not valid JSON: " + ec.message());
  }
  MOIETY_ASSIGN(const json::value done,
                run_operation(AdminClient(flags.admin.admin), "POST", "/v1/deployments",
                              json::serialize(body), !flags.admin.json));
  if (flags.admin.json) {
    print_json(done);
  } else {
    std::printf("%s is deployed; workers read %lld experts (%s) to have them together\n",
                std::string(done.at("served_as").as_string()).c_str(),
                static_cast<long long>(done.at("experts_loaded").to_number<std::int64_t>()),
                human_bytes(done.at("bytes_loaded").to_number<double>()).c_str());
  }
  return {};
}

void add_deploy(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("deploy", "Serve a subset under MODEL:NAME on a running cluster");
  auto flags = std::make_shared<DeployFlags>();
  flags->admin.add_to(*command);
  command
      ->add_option("name", flags->name,
                   "Deployment name (the model's own name with --full), or "
                   "NAME=subset.json[,on_missing=POLICY] as in `up`")
      ->required();
  command->add_option("--subset", flags->subset, "Subset file");
  command->add_option("--profile", flags->profile, "Profile file to select from");
  command->add_option("--domains", flags->domains, "Domains of the profile, A[,B]");
  command->add_option("--keep", flags->keep,
                      "Experts to keep per layer and domain, shared ones included");
  command->add_flag("--full", flags->full, "Deploy the full model");
  command
      ->add_option("--on-missing", flags->on_missing,
                   "What requests do while experts are lost: wait (the default; bounded by the "
                   "request's deadline), mask (go on without them, and say so) or fail (503)")
      ->check(CLI::IsMember({"wait", "mask", "fail"}));
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_deploy(*flags); }; });
}

/// What a fleet holds, for people.
struct FleetSize {
  std::uint64_t workers = 0;
  std::uint64_t experts = 0;
  std::uint64_t bytes = 0;
};

std::optional<FleetSize> fleet_size(const AdminClient& admin) {
  const auto status = admin.call("GET", "/v1/status");
  if (!status) return std::nullopt;
  const json::value& fleet = status->at("fleet");
  return FleetSize{fleet.at("workers_running").to_number<std::uint64_t>(),
                   fleet.at("experts_resident").to_number<std::uint64_t>(),
                   fleet.at("bytes_resident").to_number<std::uint64_t>()};
}

/// "4 workers with 378 experts (35.44 MiB)"
std::string describe(const FleetSize& fleet) {
  return fmt::format("{} worker{} with {} experts ({})", fleet.workers,
                     fleet.workers == 1 ? "" : "s", fleet.experts,
                     human_bytes(static_cast<double>(fleet.bytes)));
}

/// Ends a deployment. What that let go is what the fleet holds less; nothing where other
/// deployments keep the same experts.
Result<void> run_undeploy(const AdminFlags& flags, const std::string& name) {
  const AdminClient admin(flags.admin);
  const auto before = fleet_size(admin);
  MOIETY_ASSIGN(const json::value done,
                run_operation(admin, "DELETE", "/v1/deployments/" + http::encode_segment(name), "",
                              !flags.json));
  if (flags.json) {
    print_json(done);
    return {};
  }
  std::printf("%s is gone: %lld experts (%s) dropped by workers\n",
              std::string(done.at("served_as").as_string()).c_str(),
              static_cast<long long>(done.at("experts_dropped").to_number<std::int64_t>()),
              human_bytes(done.at("bytes_dropped").to_number<double>()).c_str());
  const auto after = fleet_size(admin);
  if (!after) return {};
  std::printf("the fleet: %s%s\n", before ? (describe(*before) + " before, ").c_str() : "",
              (describe(*after) + (before ? " now" : "")).c_str());
  return {};
}

void add_undeploy(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand("undeploy",
                                         "Stop serving a deployment: new requests get 404, running "
                                         "ones finish, workers that nobody needs end");
  struct Flags {
    AdminFlags admin;
    std::string name;
  };
  auto flags = std::make_shared<Flags>();
  flags->admin.add_to(*command);
  command
      ->add_option("name", flags->name, "Deployment name; the model's own name for the full model")
      ->required();
  command->callback([flags, &chosen] {
    chosen.run = [flags] { return run_undeploy(flags->admin, flags->name); };
  });
}

void add_drain(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "drain",
      "Retire a worker: its experts move to others, then it ends and is not used any more");
  struct Flags {
    AdminFlags admin;
    std::uint32_t worker = 0;
    bool undo = false;
  };
  auto flags = std::make_shared<Flags>();
  flags->admin.add_to(*command);
  command->add_option("worker", flags->worker, "Worker id, as `moiety status` shows it")
      ->required();
  command->add_flag("--undo", flags->undo, "Let it be used again");
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      const std::string worker = std::to_string(flags->worker);
      MOIETY_ASSIGN(const json::value done,
                    run_operation(AdminClient(flags->admin.admin), "POST",
                                  "/v1/workers/" + worker + (flags->undo ? "/undrain" : "/drain"),
                                  "", !flags->admin.json));
      if (flags->admin.json) {
        print_json(done);
      } else if (flags->undo) {
        std::printf("worker %s may be used again\n", worker.c_str());
      } else {
        std::printf("worker %s is retired; others read %lld experts (%s)\n", worker.c_str(),
                    static_cast<long long>(done.at("experts_loaded").to_number<std::int64_t>()),
                    human_bytes(done.at("bytes_loaded").to_number<double>()).c_str());
      }
      return {};
    };
  });
}

void add_rebalance(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "rebalance",
      "Place what is deployed anew, by the load that the routers observed in the last minutes");
  auto flags = std::make_shared<AdminFlags>();
  flags->add_to(*command);
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      MOIETY_ASSIGN(const json::value done, run_operation(AdminClient(flags->admin), "POST",
                                                          "/v1/rebalance", "", !flags->json));
      if (flags->json) {
        print_json(done);
      } else {
        std::printf("rebalanced: workers read %lld experts (%s) and dropped %lld\n",
                    static_cast<long long>(done.at("experts_loaded").to_number<std::int64_t>()),
                    human_bytes(done.at("bytes_loaded").to_number<double>()).c_str(),
                    static_cast<long long>(done.at("experts_dropped").to_number<std::int64_t>()));
      }
      return {};
    };
  });
}

void add_down(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("down", "End a running cluster: coordinator, routers and workers");
  auto flags = std::make_shared<AdminFlags>();
  flags->add_to(*command);
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      AdminClient admin(flags->admin);
      MOIETY_TRY(admin.call("POST", "/v1/shutdown"));
      const Deadline deadline = Clock::now() + kDownTimeout;
      while (admin.call("GET", "/health")) {
        if (interrupted()) return interrupted_error();
        if (Clock::now() > deadline) {
          return fail(ErrorCode::kDeadlineExceeded,
                      "the coordinator at " + flags->admin + " is still there after " +
                          std::to_string(kDownTimeout.count()) + " s");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
      if (flags->json) {
        print_json(json::object{{"stopped", true}});
      } else {
        std::printf("the cluster has ended\n");
      }
      return {};
    };
  });
}

}  // namespace

void add_cluster_commands(CLI::App& app, Chosen& chosen) {
  add_up(app, chosen);
  add_status(app, chosen);
  add_deploy(app, chosen);
  add_undeploy(app, chosen);
  add_drain(app, chosen);
  add_rebalance(app, chosen);
  add_down(app, chosen);
}

}  // namespace moiety::cli
