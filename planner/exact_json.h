#pragma once

#include <boost/json/parse_options.hpp>
#include <boost/json/value.hpp>
#include <boost/system/error_code.hpp>
#include <string_view>

namespace moiety::planner {

/// boost::json::parse, but doubles are correctly rounded. Boost 1.81's own conversion is off by one
/// unit in the last place for about one number in eleven, so a profile that was written and read
/// again would not be the same, nor what a chat template prints of a request's numbers.
boost::json::value parse_exact_json(std::string_view text,
                                    boost::system::error_code& error,
                                    const boost::json::parse_options& options = {});

}  // namespace moiety::planner
