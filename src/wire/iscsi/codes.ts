/** Codes of RFC 7143, by their names there. */

/** §11.2.1.2. */
export const Opcode = {
  NOP_OUT: 0x00,
  SCSI_COMMAND: 0x01,
  TASK_MANAGEMENT_REQUEST: 0x02,
  LOGIN_REQUEST: 0x03,
  TEXT_REQUEST: 0x04,
  DATA_OUT: 0x05,
  LOGOUT_REQUEST: 0x06,
  SNACK_REQUEST: 0x10,
  NOP_IN: 0x20,
  SCSI_RESPONSE: 0x21,
  TASK_MANAGEMENT_RESPONSE: 0x22,
  LOGIN_RESPONSE: 0x23,
  TEXT_RESPONSE: 0x24,
  DATA_IN: 0x25,
  LOGOUT_RESPONSE: 0x26,
  R2T: 0x31,
  ASYNC_MESSAGE: 0x32,
  REJECT: 0x3f,
} as const;

/** §11.3.1. */
export const CommandFlag = { FINAL: 0x80, READ: 0x40, WRITE: 0x20, ATTRIBUTE_MASK: 0x07 } as const;
export const Attribute = { UNTAGGED: 0, SIMPLE: 1, ORDERED: 2, HEAD_OF_QUEUE: 3, ACA: 4 } as const;

/** §11.4.1 and §11.7.3. */
export const ResponseFlag = { OVERFLOW: 0x04, UNDERFLOW: 0x02 } as const;
export const DataInFlag = { FINAL: 0x80, ACKNOWLEDGE: 0x40, OVERFLOW: 0x04, UNDERFLOW: 0x02, STATUS: 0x01 } as const;

/** §11.5.1. */
export const TaskFunction = {
  ABORT_TASK: 1,
  ABORT_TASK_SET: 2,
  CLEAR_ACA: 3,
  CLEAR_TASK_SET: 4,
  LOGICAL_UNIT_RESET: 5,
  TARGET_WARM_RESET: 6,
  TARGET_COLD_RESET: 7,
  TASK_REASSIGN: 8,
} as const;
/** §11.6.1. */
export const TaskResponse = {
  COMPLETE: 0,
  NO_TASK: 1,
  NO_LUN: 2,
  STILL_ALLEGIANT: 3,
  REASSIGN_UNSUPPORTED: 4,
  UNSUPPORTED: 5,
  NOT_AUTHORIZED: 6,
  REJECTED: 255,
} as const;

/** §11.12 and §11.13. */
export const LoginFlag = { TRANSIT: 0x80, CONTINUE: 0x40 } as const;
export const Stage = { SECURITY: 0, OPERATIONAL: 1, FULL_FEATURE: 3 } as const;
/** Status class and detail in one number. */
export const LoginStatus = {
  SUCCESS: 0x0000,
  TARGET_MOVED_TEMPORARILY: 0x0101,
  TARGET_MOVED_PERMANENTLY: 0x0102,
  INITIATOR_ERROR: 0x0200,
  AUTHENTICATION_FAILURE: 0x0201,
  AUTHORIZATION_FAILURE: 0x0202,
  NOT_FOUND: 0x0203,
  TARGET_REMOVED: 0x0204,
  UNSUPPORTED_VERSION: 0x0205,
  TOO_MANY_CONNECTIONS: 0x0206,
  MISSING_PARAMETER: 0x0207,
  CANNOT_INCLUDE_IN_SESSION: 0x0208,
  SESSION_TYPE_NOT_SUPPORTED: 0x0209,
  SESSION_DOES_NOT_EXIST: 0x020a,
  INVALID_DURING_LOGIN: 0x020b,
  TARGET_ERROR: 0x0300,
  SERVICE_UNAVAILABLE: 0x0301,
  OUT_OF_RESOURCES: 0x0302,
} as const;

/** §11.14.1 and §11.15.1. */
export const LogoutReason = { CLOSE_SESSION: 0, CLOSE_CONNECTION: 1, REMOVE_FOR_RECOVERY: 2 } as const;
export const LogoutResponse = { CLOSED: 0, CID_NOT_FOUND: 1, RECOVERY_UNSUPPORTED: 2, CLEANUP_FAILED: 3 } as const;

/** §11.16.1. */
export const SnackType = { DATA_OR_R2T: 0, STATUS: 1, DATA_ACK: 2, R_DATA: 3 } as const;

/** §11.17.1. */
export const RejectReason = {
  DATA_DIGEST_ERROR: 0x02,
  SNACK_REJECT: 0x03,
  PROTOCOL_ERROR: 0x04,
  COMMAND_NOT_SUPPORTED: 0x05,
  IMMEDIATE_COMMAND_REJECT: 0x06,
  TASK_IN_PROGRESS: 0x07,
  INVALID_DATA_ACK: 0x08,
  INVALID_PDU_FIELD: 0x09,
  LONG_OPERATION_REJECT: 0x0a,
  WAITING_FOR_LOGOUT: 0x0c,
} as const;

/** §11.9.1. */
export const AsyncEvent = {
  SCSI: 0,
  LOGOUT_REQUESTED: 1,
  CONNECTION_DROPPED: 2,
  SESSION_DROPPED: 3,
  NEGOTIATION_REQUESTED: 4,
} as const;

/** "No tag": §11.2.1.8, §11.5.4. */
export const RESERVED_TAG = 0xffff_ffff;
export const DIGEST_BYTES = 4;
/** The IANA port; and how long a name may be: §4.2.7. */
export const ISCSI_PORT = 3260;
export const NAME_BYTES_MAX = 223;
