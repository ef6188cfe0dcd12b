#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/file.h"
#include "coordinator/durable.h"
#include "coordinator/sqlite.h"

namespace moiety::coordinator {

/// What else a coordinator must know to be the same one after a restart.
struct StoreIdentity {
  std::string fingerprint;         ///< of the checkpoint
  std::string token;               ///< that peers show
  std::uint16_t control_port = 0;  ///< that workers and routers come back to; 0: none yet
  std::uint16_t admin_port = 0;
  bool operator==(const StoreIdentity&) const = default;
};

/// The coordinator's state in one SQLite file: what persist() returned for survives a kill -9 and a
/// loss of power at any instant. One thread.
///
/// The file holds the cluster's secret, so only its owner can read it. FILE.lock is locked while
/// the store is open; the system lets go of it when the process ends, however that happens. No
/// other program can read the file meanwhile. It must lie on a file system of this machine: SQLite
/// relies on locks and syncs that network file systems do not promise.
///
/// Schema 2 (PRAGMA user_version; schema 1 lacks operations.rolled_back), application_id
/// 0x4d4f4945:
///   meta(key, value)        fingerprint, token, ports, boot_id, counters
///   placement(kind, value)  "published" (an epoch's view) and "steady", as JSON
///   workers, operations     one row each, columns as in durable.h
class Store {
 public:
  /// Opens or makes the file and checks all of it.
  /// kFailedPrecondition: another coordinator uses it (named by its pid), another program or a
  /// newer Moiety wrote it, or it belongs to another checkpoint. kDataLoss: it is damaged. kIo.
  static Result<Store> open(const std::filesystem::path& file, const std::string& fingerprint);
  /// The workers in a file that will be deleted, so that their processes can be ended before. For
  /// who has locked FILE.lock. kDataLoss, kIo.
  static Result<std::vector<DurableWorker>> workers_left_in(const std::filesystem::path& file);
  Store(Store&&) = default;
  Store& operator=(Store&&) = delete;

  /// What was found: nullopt in a new file. A process of before the machine's last start is not
  /// known any more.
  const std::optional<DurableState>& restored() const { return restored_; }
  const StoreIdentity& identity() const { return identity_; }
  const std::filesystem::path& file() const { return file_; }

  /// Both return when it is on the disk. An error (kResourceExhausted: the disk is full): the state
  /// before is there unchanged, and it can be tried again.
  Result<void> persist(const DurableState& state);
  Result<void> set_identity(const StoreIdentity& identity);

  /// kResourceExhausted while the disk has less room than kReserveBytes: a change of the cluster
  /// should not begin. The store keeps as much for itself, in the file and in FILE-wal, so that
  /// losses and restarts of workers can be written on a full disk. (Where a file system needs new
  /// room to overwrite old, such as btrfs, that is no promise.)
  Result<void> check_room() const;
  static constexpr std::uint64_t kReserveBytes = 2 << 20;

  /// For tests: a store that may not grow beyond so many bytes.
  Result<void> limit_size(std::uint64_t bytes);

 private:
  Store(std::filesystem::path file, Fd lock, SqliteDatabase database)
      : file_(std::move(file)), lock_(std::move(lock)), database_(std::move(database)) {}
  Result<void> check_schema();
  Result<void> make_schema();
  /// Sees to it that the reserve is there. Where it cannot be written, warns and goes on without.
  Result<void> keep_reserve();
  Result<void> load(const std::string& fingerprint);
  Result<void> load_workers(DurableState& state);
  Result<void> load_operations(DurableState& state);
  Result<void> put(std::string_view table, std::string_view key, std::string_view value);
  Result<void> write_workers(const DurableState& state);
  Result<void> write_operations(const DurableState& state);

  std::filesystem::path file_;
  Fd lock_;
  SqliteDatabase database_;
  std::optional<DurableState> restored_;
  std::optional<DurableState> written_;  // what the file holds: only differences are written
  StoreIdentity identity_;
};

}  // namespace moiety::coordinator
