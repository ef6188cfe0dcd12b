#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <string>

#include "common/result.h"

namespace moiety::cli {

/// Talks to a coordinator's admin API, with the token of MOIETY_TOKEN where that is set.
class AdminClient {
 public:
  /// `url` is http://HOST:PORT, or HOST:PORT for short.
  explicit AdminClient(std::string url)
      : url_(url.find("://") == std::string::npos ? "http://" + url : std::move(url)) {}

  /// The JSON answer of a 2xx status. Otherwise the message of the error envelope, with its code.
  Result<boost::json::value> call(
      const std::string& method,
      const std::string& path,
      const std::string& body = "",
      std::chrono::milliseconds timeout = std::chrono::seconds(10)) const;

  /// call(), again and again while nobody answers at the address, for kPatience at most: where a
  /// cluster is watched over, a coordinator that was killed is back soon. Says on stderr that it
  /// waits. The call may have been heard more than once. kCancelled after Ctrl-C.
  Result<boost::json::value> call_patiently(const std::string& method,
                                            const std::string& path,
                                            const std::string& body = "") const;
  static constexpr std::chrono::milliseconds kPatience{4000};

  const std::string& url() const { return url_; }

 private:
  /// `*nobody`: whether no answer came at all, in contrast to one that says no.
  Result<boost::json::value> exchange(const std::string& method,
                                      const std::string& path,
                                      const std::string& body,
                                      std::chrono::milliseconds timeout,
                                      bool* nobody) const;

  std::string url_;
};

/// "undeploy tiny:code: waiting for 2 running requests of tiny:code"
std::string describe_operation(const boost::json::value& operation);

/// The status as a table for people.
std::string format_status(const boost::json::value& status);

}  // namespace moiety::cli
