"""An S3 that enforces the policies of deploy/iam.

Prints its address, then a line of JSON with the keys of each role, then serves until it is killed. Until standard input has a line,
everything is allowed to everybody.
"""

import json
import pathlib
import sys
import threading

import boto3
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET, PREFIX = "backups", "db1"
ROLES = ["writer", "reader", "auditor", "pruner", "pinner"]


def main() -> None:
    policies = pathlib.Path(sys.argv[1])
    settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.port}"
    root = {
        "endpoint_url": address,
        "region_name": "us-east-1",
        "aws_access_key_id": "root",
        "aws_secret_access_key": "root",
    }
    boto3.client("s3", **root).create_bucket(Bucket=BUCKET)
    iam, keys = boto3.client("iam", **root), {}
    for role in ROLES:
        document = (policies / f"{role}.json").read_text().replace("BUCKET", BUCKET).replace("PREFIX", PREFIX)
        iam.create_user(UserName=role)
        iam.put_user_policy(UserName=role, PolicyName=role, PolicyDocument=document)
        key = iam.create_access_key(UserName=role)["AccessKey"]
        keys[role] = [key["AccessKeyId"], key["SecretAccessKey"]]
    print(address, flush=True)
    print(json.dumps(keys), flush=True)
    sys.stdin.readline()
    ActionAuthenticatorMixin.request_count = 0
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    print("enforced", flush=True)
    sys.stdin.read()


main()
