#include "cli/operation.h"

#include <thread>

#include "cli/command.h"
#include "common/ids.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

// The coordinator has limits of its own for each part of a change; this one is for when it hangs.
constexpr std::chrono::minutes kTimeout{15};
constexpr std::chrono::seconds kCallTimeout{2};
constexpr std::chrono::milliseconds kPoll{50};

/// "undeploy tiny:code: waiting for 2 running requests of tiny:code"
std::string describe(const json::value& operation) {
  const auto text = [&](const char* name) { return std::string(operation.at(name).as_string()); };
  const std::string line = text("kind") + " " + text("served_as") + ": ";
  if (operation.at("waiting_for").is_string()) return line + "waiting for " + text("waiting_for");
  return line + text("state");
}

}  // namespace

Result<json::value> run_operation(const AdminClient& admin,
                                  const std::string& method,
                                  const std::string& path,
                                  const std::string& body,
                                  bool progress) {
  MOIETY_ASSIGN(const json::value accepted, admin.call(method, path + "?wait=false", body));
  const std::string id = json::serialize(accepted.at("operation_id"));
  const std::string goes_on =
      "the change goes on in the coordinator (operation " + id + "); `moiety status` shows it";
  const Deadline deadline = Clock::now() + kTimeout;
  std::string doing = "no answer";
  Progress line(progress);
  for (;;) {
    if (interrupted()) return fail(ErrorCode::kCancelled, "interrupted; " + goes_on);
    if (Clock::now() > deadline) {
      return fail(ErrorCode::kDeadlineExceeded,
                  doing + " after " + std::to_string(kTimeout.count()) + " minutes; " + goes_on);
    }
    const auto operation = admin.call("GET", "/v1/operations/" + id, "", kCallTimeout);
    if (operation) {
      const json::string& state = operation->at("state").as_string();
      if (state == "succeeded") return *operation;
      if (state == "failed") {
        const json::value& error = operation->at("error");
        return fail(error_code_from_name(std::string(error.at("code").as_string())),
                    std::string(error.at("message").as_string()));
      }
      std::string now = describe(*operation);
      if (now != doing) line.update(now);
      doing = std::move(now);
    } else if (operation.error().code != ErrorCode::kDeadlineExceeded) {  // else busy: ask again
      return with_context("operation " + id, operation.error());
    }
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace moiety::cli
