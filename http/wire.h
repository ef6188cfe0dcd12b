#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"

/// The text of HTTP/1.1 that both ends write themselves. No sockets here.
namespace moiety::http {

/// "Not Found" for 404; "Unknown" for a status outside the table.
std::string_view reason_phrase(int status);

std::string lower_case(std::string_view text);

/// Status line, headers and the empty line of an answer. Content-Length is written when given;
/// without it, `chunked` or the end of the connection ends the body. Line breaks in header values
/// become spaces, so that a value cannot start another header.
struct ResponseHead {
  int status = 200;
  std::string_view content_type;
  const std::map<std::string, std::string>* headers = nullptr;  ///< further ones; may be null
  std::optional<std::size_t> content_length;
  bool chunked = false;
  bool close = false;
};
std::string format_head(const ResponseHead& head);

/// One chunk of a chunked body. An empty piece gives "" (an empty chunk would end the body).
std::string format_chunk(std::string_view piece);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

/// `text` with its escapes ("%41") replaced; nullopt where one is bad or a zero byte.
std::optional<std::string> decode_escapes(std::string_view text);
/// `name` as one segment of a path: what has a meaning in a URL, or no place there, is escaped.
std::string encode_segment(std::string_view name);

/// A request target split into the decoded path and the raw query.
struct Target {
  std::string path;
  std::string query;
};
/// Takes the origin form ("/a%20b?x=1"), the absolute form ("http://host/a") and "*".
/// kInvalidArgument for anything else, and for a bad or zero-byte escape.
Result<Target> parse_target(std::string_view target);

/// "http://host[:port][/path][?query]"; IPv6 hosts in brackets.
struct Url {
  std::string host;  ///< without brackets
  std::uint16_t port = 80;
  std::string target;  ///< path and query, at least "/"

  std::string authority() const;  ///< "host:port"
};
Result<Url> parse_url(std::string_view url);

}  // namespace moiety::http
